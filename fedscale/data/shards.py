"""WebDataset shards: tars whose members KEY.jpg, KEY.cls, KEY.json, KEY.txt together are one sample.

Ours are written with fixed metadata, so that equal samples are equal bytes. Those that others made (img2dataset) are
read as they are, wherever they lie. The reader is our own, because the ordinary ones end silently at a damaged header
and hand out half a sample at a truncation (`fedscale.data.tar`).
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedscale.data.members import IMAGES, READ, Contents, SampleIndex, image_of, samples
from fedscale.data.tape import Tape
from fedscale.data.tar import BLOCK, BrokenShard, Member, MissingShard, walk
from fedscale.errors import UserError
from fedscale.files import published
from fedscale.storage import open_read

RECORD = 20 * BLOCK  # tar pads the archive to whole records
KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")  # without dots, at which WebDataset would end it; a tar's name holds 100
MAX_IMAGE = 2**27  # bytes; a larger one is no photograph
MAX_TEXT = 2**24  # bytes of a .cls, .json or .txt


@dataclass(frozen=True)
class Sample:
    """One image of a shard. `label` is None in the pool, `keyword` (of the crawl) and `caption` where there is none.

    In an unlabelled sample without a keyword in its .json, the crawl's text (.txt, or "caption" of the .json) is the
    keyword; any other .txt is the caption. An image over the limit is left out: `image` is empty, `too_large` its size.
    """

    key: str
    image: bytes
    suffix: str  # jpg, jpeg, png or webp
    label: int | None = None
    keyword: str | None = None
    caption: str | None = None
    source: str | None = None  # the original's name, or the URL that it was crawled from
    too_large: str = ""  # e.g. "301,465,600 bytes, above 134,217,728"
    facts: dict[str, Any] = field(default_factory=dict)  # written into the .json beside keyword and source; not read


@dataclass(frozen=True)
class Written:
    """What `write_shard` wrote, as a manifest records it."""

    samples: int
    bytes: int
    sha256: str
    members: dict[str, int] = field(default_factory=dict)  # by extension
    index: str = ""


def write_shard(path: Path, samples: Iterable[Sample]) -> Written:
    """Write a tar atomically: members in sample order, no times, owners or machine in it.

    Raises UserError for a key that is there twice or has characters other than letters, digits, _ and -.
    """
    digest, size, contents = hashlib.sha256(), 0, Contents()
    keys: set[str] = set()
    with published(path) as temporary, open(temporary, "wb") as file:

        def put(block: bytes) -> None:
            nonlocal size
            file.write(block)
            digest.update(block)
            size += len(block)

        for sample in samples:
            _check_key(path, sample, keys)
            members = {}
            for extension, data in _members(sample):
                put(_header(f"{sample.key}.{extension}", len(data)))
                members[extension] = Member(f"{sample.key}.{extension}", size, len(data))
                put(data + bytes(-len(data) % BLOCK))
            contents.add(SampleIndex(sample.key, members))
        put(bytes(2 * BLOCK + (-(size + 2 * BLOCK)) % RECORD))
    return Written(contents.samples, size, digest.hexdigest(), contents.members, contents.index)


def read_shard(
    shard: Path | str,
    *,
    digest: Any = None,
    skip: int = 0,
    max_image: int = MAX_IMAGE,
    contents: Contents | None = None,
) -> Iterator[Sample]:
    """All samples in order, of a path or URL. `skip` passes over so many at the beginning without parsing them.

    Every byte of the shard, padding and end blocks too, goes through `digest` (e.g. `hashlib.sha256()`), and every
    sample's members into `contents`, both complete once the iterator is at its end.
    Raises BrokenShard for anything but a whole, well-formed shard (MissingShard where there is none), and Unreadable
    for one that cannot be read to its end.
    """
    try:
        with open_read(str(shard)) as file:
            tape = Tape(file, digest)
            loaded: dict[str, bytes | str] = {}
            for number, index in enumerate(samples(_loading(tape, loaded, max_image))):
                if contents is not None:
                    contents.add(index)
                data = {extension: loaded.pop(member.name, b"") for extension, member in index.members.items()}
                if number >= skip:
                    yield _sample(index.key, data)
    except BrokenShard as broken:  # of the walk, which knows no name
        raise BrokenShard(broken.reason, str(shard)) from None
    except FileNotFoundError:
        raise MissingShard(str(shard)) from None


def file_sha256(shard: Path | str) -> str:
    """SHA-256 of a shard's bytes. Raises MissingShard."""
    digest = hashlib.sha256()
    try:
        with open_read(str(shard)) as file:
            while block := file.read(2**20):
                digest.update(block)
    except FileNotFoundError:
        raise MissingShard(str(shard)) from None
    return digest.hexdigest()


def _check_key(path: Path, sample: Sample, keys: set[str]) -> None:
    assert sample.suffix in IMAGES and not sample.too_large, f"{sample.key}: an image of its own bytes, read whole"
    if not KEY.fullmatch(sample.key):
        expected = "letters, digits, _ and -, 90 at most (WebDataset ends a key at its first dot)"
        raise UserError(f"{path}: cannot hold key {sample.key!r}; expected {expected}: rename the sample")
    if sample.key in keys:
        raise UserError(f"{path}: key {sample.key} comes twice; expected one sample a key: rename one")
    keys.add(sample.key)


def _members(sample: Sample) -> Iterator[tuple[str, bytes]]:
    yield sample.suffix, sample.image
    if sample.label is not None:
        yield "cls", str(sample.label).encode("ascii")
    facts = {"keyword": sample.keyword, "source": sample.source, **sample.facts}
    yield "json", json.dumps({k: v for k, v in facts.items() if v is not None}, ensure_ascii=False).encode("utf-8")
    if sample.caption is not None:
        yield "txt", sample.caption.encode("utf-8")


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


def _loading(tape: Tape, loaded: dict[str, bytes | str], max_image: int) -> Iterator[Member]:
    """The members, with the data of those that make a sample left in `loaded`: a stream passes by only once.

    An image over the limit leaves the words that say so. The walk itself finds data that is cut.
    """
    for member in walk(tape):
        extension = member.name.rpartition(".")[2].lower()
        if extension in READ:
            limit = max_image if extension in IMAGES else MAX_TEXT
            if member.size <= limit:
                loaded[member.name] = tape.at(member.offset, member.size)
            elif extension in IMAGES:
                loaded[member.name] = f"{member.size:,} bytes, above {limit:,}"
            else:
                raise BrokenShard(f"{member.name} has {member.size:,} bytes, expected {limit:,} at most")
        yield member


def _sample(key: str, data: dict[str, bytes | str]) -> Sample:
    suffix = image_of(data)
    held = data[suffix]
    image, too_large = (b"", held) if isinstance(held, str) else (held, "")
    try:
        label = int(data["cls"]) if "cls" in data else None
    except ValueError:
        raise BrokenShard(f"sample {key} has a .cls that cannot be read, expected a number") from None
    facts = _facts(data.get("json", b""))
    text = data.get("txt")
    caption = text.decode("utf-8", "replace") if isinstance(text, bytes) else None  # one odd byte spoils no shard
    keyword = facts.get("keyword")
    if label is None and keyword is None:
        keyword, caption = caption or facts.get("caption"), None
    return Sample(key, image, suffix, label, keyword, caption, facts.get("source") or facts.get("url"), too_large)


def _facts(text: bytes | str) -> dict[str, str]:
    """The texts of a .json; none where it is no JSON object: the image is as good without them."""
    try:
        found = json.loads(text)
        return {name: value for name, value in found.items() if isinstance(value, str)}
    except (ValueError, AttributeError, RecursionError):
        return {}
