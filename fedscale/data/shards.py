"""WebDataset shards: tars whose members KEY.jpg|png, KEY.cls, KEY.json, KEY.txt together are one sample.

Written with fixed metadata, so that equal samples are equal bytes. Read by a parser of its own, because the ordinary
readers end silently at a damaged header and hand out half a sample at a truncation.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fedscale.errors import UserError
from fedscale.files import published

BLOCK = 512
RECORD = 20 * BLOCK  # tar pads the archive to whole records
MEMBER = re.compile(r"([A-Za-z0-9_-]+)\.(jpg|png|cls|json|txt)")
MAX_MEMBER = 2**28  # bytes


@dataclass(frozen=True)
class Sample:
    """One image of a shard. `label` is None in the pool, `keyword` (of the crawl) and `caption` where there is none."""

    key: str
    image: bytes
    suffix: str  # jpg or png
    label: int | None = None
    keyword: str | None = None
    caption: str | None = None
    source: str | None = None  # the original's name


@dataclass(frozen=True)
class Written:
    """What `write_shard` wrote."""

    samples: int
    bytes: int
    sha256: str


def write_shard(path: Path, samples: Iterable[Sample]) -> Written:
    """Write a tar atomically: members in sample order, no times, owners or machine in it."""
    digest, size, count = hashlib.sha256(), 0, 0
    with published(path) as temporary, open(temporary, "wb") as file:

        def put(block: bytes) -> None:
            nonlocal size
            file.write(block)
            digest.update(block)
            size += len(block)

        for sample in samples:
            for extension, data in _members(sample):
                put(_header(f"{sample.key}.{extension}", len(data)))
                put(data + bytes(-len(data) % BLOCK))
            count += 1
        put(bytes(2 * BLOCK + (-(size + 2 * BLOCK)) % RECORD))
    return Written(count, size, digest.hexdigest())


def read_shard(path: Path) -> Iterator[Sample]:
    """All samples in order. Raises UserError for anything but a whole, well-formed shard."""
    try:
        with open(path, "rb") as file:
            yield from _grouped(_parse(file, path), path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such shard; build the shards again") from None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises UserError where it is missing."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(f"{path}: no such shard; build the shards again") from None


def _members(sample: Sample) -> Iterator[tuple[str, bytes]]:
    assert MEMBER.fullmatch(f"{sample.key}.{sample.suffix}"), (
        f"a key without dots, an image of jpg or png: {sample.key}"
    )
    yield sample.suffix, sample.image
    if sample.label is not None:
        yield "cls", str(sample.label).encode("ascii")
    facts = {"keyword": sample.keyword, "source": sample.source}
    yield "json", json.dumps({k: v for k, v in facts.items() if v is not None}, ensure_ascii=False).encode("utf-8")
    if sample.caption is not None:
        yield "txt", sample.caption.encode("utf-8")


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


def _parse(file: IO[bytes], path: Path) -> Iterator[tuple[str, str, bytes]]:
    """(key, extension, content) of each member, to the two zero blocks that end the archive."""
    while True:
        header = file.read(BLOCK)
        if header == bytes(BLOCK):
            rest = file.read()
            if len(rest) < BLOCK or any(rest):
                raise _broken(path, "it does not end where a tar ends")
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError):
            raise _broken(
                path, "it is truncated" if len(header) < BLOCK else f"damaged at byte {file.tell() - BLOCK}"
            ) from None
        match = MEMBER.fullmatch(info.name)
        if not info.isreg() or match is None:
            raise _broken(path, f"unexpected member {info.name!r}")
        if info.size > MAX_MEMBER:
            raise _broken(path, f"{info.name} has {info.size:,} bytes")
        padded = info.size + -info.size % BLOCK
        data = file.read(padded)
        if len(data) < padded:
            raise _broken(path, f"it is truncated inside {info.name}")
        yield match[1], match[2], data[: info.size]


def _grouped(members: Iterator[tuple[str, str, bytes]], path: Path) -> Iterator[Sample]:
    key = ""
    held: dict[str, bytes] = {}
    seen: set[str] = set()
    for member_key, extension, data in members:
        if member_key != key:
            if held:
                yield _sample(key, held, path)
            if member_key in seen:
                raise _broken(path, f"the members of {member_key} do not lie together")
            seen.add(member_key)
            key, held = member_key, {}
        if extension in held:
            raise _broken(path, f"{key}.{extension} appears twice")
        held[extension] = data
    if held:
        yield _sample(key, held, path)


def _sample(key: str, held: dict[str, bytes], path: Path) -> Sample:
    suffixes = [suffix for suffix in ("jpg", "png") if suffix in held]
    if len(suffixes) != 1:
        raise _broken(path, f"sample {key} has {len(suffixes)} images, expected one .jpg or .png")
    try:
        facts = json.loads(held.get("json", b"{}"))
        label = int(held["cls"]) if "cls" in held else None
        caption = held["txt"].decode("utf-8") if "txt" in held else None
        return Sample(key, held[suffixes[0]], suffixes[0], label, facts.get("keyword"), caption, facts.get("source"))
    except (ValueError, AttributeError):
        raise _broken(path, f"sample {key} has a .cls or .json that cannot be read") from None


def _broken(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: not a whole shard ({reason}); copy it again or build the shards again")
