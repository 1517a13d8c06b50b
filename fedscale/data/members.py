"""From a tar's members to samples: names in WebDataset's convention, KEY.EXTENSION, one key's members side by side."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from fedscale.data.tape import Tape, source_of
from fedscale.data.tar import BrokenShard, Member, walk
from fedscale.storage import Unreadable, open_read

IMAGES = frozenset({"jpg", "jpeg", "png", "webp"})
READ = IMAGES | {"cls", "json", "txt"}  # other extensions are counted and left unread
PICKLES = frozenset({"pkl", "pickle", "pyd", "pth", "pt", "pyc"})


class SampleIndex(NamedTuple):
    """Where one sample lies: its members by extension, in the order of the tar."""

    key: str
    members: dict[str, Member]


def samples(members: Iterable[Member]) -> Iterator[SampleIndex]:
    """The members of a shard grouped by key.

    Raises BrokenShard for a name without key or extension, a pickle, a key with a dot in it, a sample without an image
    or with several, and a key or a name that comes again.
    """
    key: str | None = None
    held: dict[str, Member] = {}
    seen: set[str] = set()
    for member in members:
        name = member.name
        folder, slash, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        if extension not in READ or not stem:
            extension = _checked(name, stem, extension)
        member_key = folder + slash + stem
        if member_key != key:
            if key is not None:
                yield _whole(key, held)
            if member_key in seen:
                raise BrokenShard(
                    f"key {member_key} comes again after other samples: it is there twice, or its members do not lie "
                    "together"
                )
            seen.add(member_key)
            key, held = member_key, {}
        if extension in held:
            raise BrokenShard(f"{name} is there twice")
        held[extension] = member
    if key is not None:
        yield _whole(key, held)


def image_of(members: dict[str, Any]) -> str:
    """The extension of a sample's image."""
    return next(extension for extension in members if extension in IMAGES)


def key_hash(key: str) -> int:
    """64 bits of a key, the same in every process."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little", signed=True)


class Contents:
    """What a manifest records of a shard, gathered sample by sample.

    `index` changes when a member is renamed, moves or changes its size; `keys` are 64-bit hashes, eight bytes each,
    which tell whether two of many millions of samples share a key.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.members: dict[str, int] = {}  # by extension
        self.keys: array[int] = array("q")
        self._digest = hashlib.sha256()

    def add(self, sample: SampleIndex) -> None:
        self.samples += 1
        self.keys.append(key_hash(sample.key))
        told = ""
        for extension, (name, offset, size) in sample.members.items():
            self.members[extension] = self.members.get(extension, 0) + 1
            told += f"{name}\0{offset}\0{size}\n"
        self._digest.update(told.encode())

    @property
    def index(self) -> str:
        """16 hex digits."""
        return self._digest.hexdigest()[:16]


@dataclass(frozen=True)
class Survey:
    """A whole shard walked through once. `sha256` is "" where only its headers were read."""

    bytes: int
    samples: int
    members: dict[str, int]
    index: str
    sha256: str
    keys: array[int]


def survey(url: str, hashed: bool = False) -> Survey | str:
    """Walk a shard: on a disk its headers alone, elsewhere or `hashed` every byte; the reason (str) if it is broken.

    Raises UserError where a store refuses us, which no other shard would change.
    """
    digest = hashlib.sha256() if hashed else None
    contents = Contents()
    try:
        with open_read(url) as file:
            source = Tape(file, digest) if digest else source_of(file)
            for sample in samples(walk(source)):
                contents.add(sample)
            sha256 = digest.hexdigest() if digest else ""
            return Survey(source.end(), contents.samples, contents.members, contents.index, sha256, contents.keys)
    except FileNotFoundError:
        return "no such shard"
    except BrokenShard as broken:
        return broken.reason
    except Unreadable as error:
        return str(error)


def _checked(name: str, stem: str, extension: str) -> str:
    """An extension that is none of READ, in lower case. Raises BrokenShard for names that are no KEY.EXTENSION."""
    extension = extension.lower()
    if not stem or not extension:
        raise BrokenShard(f"{name} has no {'extension' if stem else 'key'}")
    if PICKLES & set(extension.split(".")):
        raise BrokenShard(f"{name} is a pickle, which can run any code when it is read")
    if "." in extension and re.search(r"\d", extension):
        raise BrokenShard(
            f"{name} has a dot in its key: WebDataset ends a key at the first dot, and would merge it with others"
        )
    return extension


def _whole(key: str, members: dict[str, Member]) -> SampleIndex:
    images = IMAGES & members.keys()
    if len(images) != 1:
        held = ", ".join(f".{extension}" for extension in members)
        raise BrokenShard(f"sample {key} has {len(images) or 'no'} images ({held}), expected one")
    return SampleIndex(key, members)
