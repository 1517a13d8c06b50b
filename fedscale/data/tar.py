"""A strict walk over the headers of a tar, from front to back, that never looks at the members' data.

webdataset (through `tarfile`) takes a damaged or missing header for the end of the archive and hands out what came
before. Here anything but a whole archive is a `BrokenShard` with the reason. Formats: ustar, GNU and pax.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from fedscale.data.tape import CHUNK, Source, source_of
from fedscale.errors import UserError

BLOCK = 512  # bytes; a header is one block, data fills whole blocks, two zero blocks end the archive
ZEROS = bytes(BLOCK)
MAX_ATTRIBUTES = 2**20  # bytes of one long name or pax header
MAX_SIZE = 2**60  # bytes of a member; a larger number is damage, and no offset of a file

_PADDING = b"\0 "  # of a header's numbers
_HEADER = struct.Struct("100s24x12s12x8sc100x8s80x155s12x")  # name, size, checksum, type, magic, prefix
_REGULAR = {b"0", b"\0", b"7"}
_EXTENDS = {b"x", b"g", b"L", b"K"}  # headers about the members that follow
_REFUSED = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a named pipe"}
_LEADS_OUT = {"", "/"}  # first characters


class BrokenShard(UserError):
    """A shard that is not whole or not well formed. `reason` says what is wrong with it, without its name."""

    def __init__(self, reason: str, shard: str = "") -> None:
        self.reason, self.shard = reason, shard
        remedy = "copy it again or build the shards again"
        super().__init__(f"{shard}: not a whole shard ({reason}); {remedy}" if shard else reason)

    def __reduce__(self) -> tuple[Any, ...]:  # it crosses between processes
        return BrokenShard, (self.reason, self.shard)


class MissingShard(BrokenShard):
    """A shard that is not there at all."""

    def __init__(self, shard: str) -> None:
        super().__init__("no such shard", shard)
        self.args = (f"{shard}: no such shard; build or import the shards again",)

    def __reduce__(self) -> tuple[Any, ...]:
        return MissingShard, (self.shard,)


class Member(NamedTuple):
    """A regular file in a tar: its name, and where its data lies. Bytes."""

    name: str
    offset: int
    size: int


def walk(file: BinaryIO | Source) -> Iterator[Member]:
    """The members in order: a file on a disk by its headers alone, anything else read through.

    Raises BrokenShard for all but a whole archive of plainly named regular files (and folders, which are passed over).
    """
    source = file if isinstance(file, Source) else source_of(file)
    offset, last = 0, ""
    shared: dict[str, str] = {}  # pax attributes of all members that follow
    own: dict[str, str] = {}  # … and of the next one alone
    while (block := source.at(offset, BLOCK)) != ZEROS:
        if len(block) < BLOCK:
            raise _cut(source, offset, last)
        name, size, kind = _parsed(block, offset)
        data = offset + BLOCK
        if kind in _EXTENDS:
            attributes = _attributes(source, data, size, kind)
            (shared if kind == b"g" else own).update(attributes)
            offset = data + size + -size % BLOCK
            continue
        if shared or own:
            name, size = _overridden(name, size, {**shared, **own}, offset)
            own = {}
        offset = data + size + -size % BLOCK
        if kind not in _REGULAR:
            if kind == b"5":
                continue
            raise BrokenShard(f"{name} is {_REFUSED.get(kind, f'a member of type {kind!r}')}, expected plain files")
        if name[-1:] == "/":  # an old tar's folder
            continue
        if name[:2] == "./":
            name = name[2:]
        if name[:1] in _LEADS_OUT or (".." in name and ".." in name.split("/")):
            raise BrokenShard(f"the name {name!r} leads out of the archive")
        last = name
        yield Member(name, data, size)
    if own:
        raise BrokenShard(f"a long name or pax header without its member at byte {offset}")
    _check_end(source, offset, last)


def _parsed(block: bytes, offset: int) -> tuple[str, int, bytes]:
    """Name, size and type of a header. Raises BrokenShard for one that is damaged."""
    raw, size_field, sum_field, kind, magic, prefix = _HEADER.unpack(block)
    try:
        recorded = int(sum_field.rstrip(_PADDING), 8)
        # The header's checksum is the sum of its bytes, its own field counted as 8 spaces. Adler-32's lower half is one
        # plus the sum of all bytes modulo 65521, ten times faster than a loop; where they differ, exact sums decide.
        total = (zlib.adler32(block) & 0xFFFF) - (zlib.adler32(sum_field) & 0xFFFF) + 8 * 32
        if (total - recorded) % 65521 and recorded not in _checksums(block):
            raise ValueError
        if size_field[0] & 0x80:  # GNU's form of 8 GiB and more
            size = int.from_bytes(size_field[1:], "big")
        else:
            size = int(size_field.rstrip(_PADDING) or b"0", 8)
        if not 0 <= size < MAX_SIZE:
            raise ValueError
        name = raw.partition(b"\0")[0].decode()
        if prefix[0] and magic[:6] == b"ustar\0":
            name = prefix.partition(b"\0")[0].decode() + "/" + name
    except ValueError:  # UnicodeDecodeError is one
        packed = ", but one of a gzip file; expected a plain tar" if offset == 0 and block[:2] == b"\x1f\x8b" else ""
        raise BrokenShard(f"no tar header at byte {offset}{packed}") from None
    return name, size, kind


def _checksums(block: bytes) -> tuple[int, int]:
    """Both sums that tars carry: of unsigned bytes, as the standard says, and of signed ones, as in old programs."""
    cleared = block[:148] + b" " * 8 + block[156:]
    return sum(cleared), sum(struct.unpack("512b", cleared))


def _attributes(source: Source, offset: int, size: int, kind: bytes) -> dict[str, str]:
    """What a GNU long name (`L`) or a pax header (`x`, `g`) says of the members that follow; `K` names a link."""
    if size > MAX_ATTRIBUTES:
        raise BrokenShard(f"a long name or pax header of {size:,} bytes at byte {offset - BLOCK}")
    data = source.at(offset, size)
    if len(data) < size:
        raise BrokenShard(f"cut inside a long name or pax header at byte {offset - BLOCK}")
    try:
        if kind == b"L":
            return {"path": data.partition(b"\0")[0].decode()}
        return {} if kind == b"K" else dict(_records(data))
    except ValueError:
        raise BrokenShard(f"damaged long name or pax header at byte {offset - BLOCK}") from None


def _records(data: bytes) -> Iterator[tuple[str, str]]:
    """The `length key=value` records of a pax header that tell where a member lies; times and owners do not."""
    while data:
        length = int(data.partition(b" ")[0])
        record = data[:length]
        if length < 5 or not record.endswith(b"\n") or len(record) < length:
            raise ValueError
        key, equals, value = record[:-1].partition(b" ")[2].partition(b"=")
        if not equals or key.startswith(b"GNU.sparse"):
            raise ValueError
        if key in (b"path", b"size"):
            yield key.decode(), value.decode()
        data = data[length:]


def _overridden(name: str, size: int, attributes: dict[str, str], offset: int) -> tuple[str, int]:
    try:
        size = int(attributes.get("size", size))
    except ValueError:
        size = -1
    if not 0 <= size < MAX_SIZE:
        raise BrokenShard(f"damaged pax header before byte {offset}: size={attributes['size']}")
    return attributes.get("path", name), size


def _cut(source: Source, offset: int, last: str) -> BrokenShard:
    end = source.end()
    if end == 0:
        return BrokenShard("empty file")
    if end < offset:
        return BrokenShard(f"cut inside {last or 'the first header'} at byte {end}")
    if end > offset:
        return BrokenShard(f"cut inside the header after {last or 'none'} at byte {end}")
    return BrokenShard(f"cut after {last}: the end-of-archive blocks are missing")


def _check_end(source: Source, offset: int, last: str) -> None:
    """Raises BrokenShard unless two zero blocks or more lie at `offset`, and nothing else up to the end."""
    after = offset + BLOCK
    second = source.at(after, BLOCK)
    if second[:1] and second != ZEROS[: len(second)]:
        raise BrokenShard(f"zeroed header after {last or 'none'} at byte {offset}")
    while chunk := source.at(after, CHUNK):
        if chunk.count(0) != len(chunk):
            raise BrokenShard(f"data after the end of the archive at byte {offset}")
        after += len(chunk)
    if after < offset + 2 * BLOCK or after % BLOCK:
        raise BrokenShard(f"cut in the end-of-archive blocks at byte {after}")
