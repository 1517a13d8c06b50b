"""The walk agrees with the ordinary reader on whole tars, and names what is wrong with any other."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fedscale.data.tape import Tape
from fedscale.data.tar import BLOCK, BrokenShard, Member, MissingShard, walk

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def tar(*members: tuple[str, bytes], form: int = tarfile.USTAR_FORMAT, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar's bytes; times are fractions, which makes a pax header of each in that format."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.mtime = len(data), kind, 1.5
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def header(name: str = "a.jpg", kind: bytes = b"0", size: int = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.USTAR_FORMAT)


def resealed(block: bytes, **fields: tuple[int, bytes]) -> bytes:
    """A header with some fields replaced (offset, bytes) and its checksum made good again."""
    changed = bytearray(block)
    for offset, value in fields.values():
        changed[offset : offset + len(value)] = value
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


END = bytes(2 * BLOCK)
MEMBERS = [(f"{i:05d}.{ext}", bytes([i + 1]) * size) for i in range(10) for ext, size in (("jpg", 700), ("txt", 512))]


@pytest.fixture(params=["disk", "stream"])
def walked(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[bytes], list[Member]]:
    """Walks through bytes that lie on a disk, or that come by once."""

    def walked(content: bytes) -> list[Member]:
        if request.param == "stream":
            return list(walk(io.BytesIO(content)))
        (tmp_path / "0.tar").write_bytes(content)
        with open(tmp_path / "0.tar", "rb") as file:
            return list(walk(file))

    return walked


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("long", ["", "d" * 90 + "/" + "f" * 90 + "/", "é" * 40])
def test_the_walk_finds_what_tarfile_finds(walked: Callable[[bytes], list[Member]], form: str, long: str) -> None:
    content = tar(*((long + name, data) for name, data in MEMBERS), form=FORMATS[form])
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        expected = [Member(info.name, info.offset_data, info.size) for info in archive]
    assert walked(content) == expected
    assert [content[m.offset : m.offset + m.size] for m in expected] == [data for _, data in MEMBERS]


def test_a_member_of_8_gib_and_more_is_walked_over(tmp_path: Path) -> None:
    size = 9 * 2**30
    info = tarfile.TarInfo("a.jpg")
    info.size = size
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with open(tmp_path / "large.tar", "wb") as file:
            file.write(info.tobuf(form))
            start = file.tell()
            file.seek(start + size)
            file.write(tar(("b.jpg", b"x")))
        with open(tmp_path / "large.tar", "rb") as file:
            assert list(walk(file)) == [Member("a.jpg", start, size), Member("b.jpg", start + size + BLOCK, 1)]


def test_old_and_odd_but_whole_forms_are_read(walked: Callable[[bytes], list[Member]]) -> None:
    old = resealed(header("old.jpg"), kind=(156, b"\0"), magic=(257, bytes(8)))
    spaces = resealed(header("pad.jpg"), size=(124, b"          0 "))
    signed = bytearray(header("\u00fc.jpg"))
    signed[148:156] = b" " * 8
    signed[148:156] = b"%06o\0 " % sum(byte - 256 if byte > 127 else byte for byte in signed)
    folder, global_pax = header("dir", kind=b"5"), tar_pax_global()
    content = old + folder + spaces + global_pax + bytes(signed) + header("./dot.jpg") + END
    assert [member.name for member in walked(content)] == ["old.jpg", "pad.jpg", "\u00fc.jpg", "dot.jpg"]


def tar_pax_global() -> bytes:
    return tarfile.TarInfo.create_pax_global_header({"comment": "of a web crawl"})


WHOLE = tar(*MEMBERS)
FIRST = BLOCK + 1024  # where the second member's header lies
CONTENT = 10 * (BLOCK + 1024 + BLOCK + BLOCK)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        pytest.param(b"", "empty file", id="empty"),
        pytest.param(WHOLE[: FIRST + 2 * BLOCK], "cut after 00000.txt", id="cut at sample boundary"),
        pytest.param(WHOLE[:FIRST], "cut after 00000.jpg", id="cut at member boundary"),
        pytest.param(WHOLE[: FIRST + 100], "cut inside the header after 00000.jpg", id="cut in header"),
        pytest.param(WHOLE[: BLOCK + 300], "cut inside 00000.jpg", id="cut in data"),
        pytest.param(WHOLE[: BLOCK + 800], "cut inside 00000.jpg", id="cut in padding"),
        pytest.param(WHOLE[:CONTENT], "cut after 00009.txt: the end", id="no end blocks"),
        pytest.param(WHOLE[: CONTENT + BLOCK], "cut in the end-of-archive", id="one end block"),
        pytest.param(WHOLE[: CONTENT + 600], "cut in the end-of-archive", id="a block and a half"),
        pytest.param(WHOLE[: CONTENT + 1500], "cut in the end-of-archive", id="two blocks and a half"),
        pytest.param(
            WHOLE[:FIRST] + b"\xff" * BLOCK + WHOLE[FIRST + BLOCK :], "no tar header at byte 1536", id="garbage header"
        ),
        pytest.param(
            WHOLE[:FIRST] + bytes(BLOCK) + WHOLE[FIRST + BLOCK :], "zeroed header after 00000.jpg", id="zeroed header"
        ),
        pytest.param(
            WHOLE[:FIRST] + bytes(4 * BLOCK) + WHOLE[FIRST + 4 * BLOCK :], "data after the end", id="zeroed middle"
        ),
        pytest.param(WHOLE + b"x", "data after the end", id="a byte after the end"),
        pytest.param(WHOLE + WHOLE, "data after the end", id="two tars in one"),
        pytest.param(WHOLE[:600] + b"!" + WHOLE[600:], "no tar header", id="a byte more"),
        pytest.param(b"\x1f\x8b" + bytes(700), "gzip", id="gzip"),
        pytest.param(resealed(header(), size=(124, b"-0000000001\0")) + END, "no tar header", id="negative size"),
        pytest.param(resealed(header(), size=(124, b"\x80" + b"\xff" * 11)) + END, "no tar header", id="endless size"),
        pytest.param(
            header(kind=b"x", size=32) + b"32 size=%023d\n" % 10**22 + bytes(480) + header() + END,
            "size=",
            id="pax size",
        ),
        pytest.param(resealed(header(), name=(0, b"\xff\xfe")) + END, "no tar header", id="name not UTF-8"),
        pytest.param(header(kind=b"x", size=20) + b"xx path=a.jpg\n".ljust(512, b"\0") + END, "damaged", id="pax"),
        pytest.param(header(kind=b"L", size=2**30) + END, "of 1,073,741,824 bytes", id="long name of 1 GiB"),
        pytest.param(header(kind=b"L", size=5) + b"b.jpg".ljust(512, b"\0") + END, "without its member", id="orphan"),
        pytest.param(header("a.jpg", kind=b"1") + END, "a.jpg is a hard link", id="hard link"),
        pytest.param(header("a.jpg", kind=b"2") + END, "a.jpg is a symbolic link", id="symbolic link"),
        pytest.param(header("a.jpg", kind=b"3") + END, "a.jpg is a device", id="device"),
        pytest.param(header("a.jpg", kind=b"S") + END, "a.jpg is a member of type", id="sparse"),
        pytest.param(header("../a.jpg") + END, "'../a.jpg' leads out", id="climbs"),
        pytest.param(header("a/../../b.jpg") + END, "leads out", id="climbs from within"),
        pytest.param(header("/etc/a.jpg") + END, "'/etc/a.jpg' leads out", id="absolute"),
        pytest.param(header("") + END, "leads out", id="no name"),
    ],
)
def test_anything_but_a_whole_tar_is_refused_with_its_reason(
    walked: Callable[[bytes], list[Member]], broken: bytes, reason: str
) -> None:
    with pytest.raises(BrokenShard) as caught:
        walked(broken)
    assert reason in caught.value.reason


def test_every_single_cut_is_seen() -> None:
    for end in range(0, CONTENT + 2 * BLOCK, 97):
        with pytest.raises(BrokenShard):
            list(walk(io.BytesIO(WHOLE[:end])))


def test_every_flipped_bit_of_a_header_is_seen() -> None:
    for bit in range(BLOCK * 8):
        changed = bytearray(WHOLE)
        changed[bit // 8] ^= 1 << bit % 8
        if 148 <= bit // 8 < 156 and changed[148:156].strip(b"\0 0") == WHOLE[148:156].strip(b"\0 0"):
            continue  # of the padding around the checksum's own digits
        try:
            names = [member.name for member in walk(io.BytesIO(changed))]
        except BrokenShard:
            continue
        pytest.fail(f"bit {bit} flipped, and the walk found {names[:1]}")


def test_no_data_is_read_from_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    read = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: read.append(size) or pread(fd, size, offset))
    (tmp_path / "0.tar").write_bytes(tar(("a.jpg", bytes(5_000_000)), ("b.jpg", bytes(5_000_000))))
    with open(tmp_path / "0.tar", "rb") as file:
        assert len(list(walk(file))) == 2
    assert sum(read) < 3 * 2**20


def test_a_tape_hands_out_what_lies_there_whatever_the_sizes_of_its_reads() -> None:
    content = bytes(range(256)) * 20_000

    class Trickle(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 1000))

    tape = Tape(Trickle(content))
    for offset, size in [(0, 10), (5, 3000), (3000, 1), (100_000, 50_000), (len(content) - 5, 5)]:
        assert tape.at(offset, size) == content[offset : offset + size]
    assert tape.at(len(content) - 5, 100) == content[-5:]
    assert tape.end() == len(content)


@pytest.mark.parametrize("error", [BrokenShard("empty file", "0.tar"), BrokenShard("cut"), MissingShard("0.tar")])
def test_the_errors_cross_between_processes(error: BrokenShard) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.reason, copy.shard) == (type(error), str(error), error.reason, error.shard)
