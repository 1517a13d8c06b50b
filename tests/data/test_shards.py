import json
import tarfile
from pathlib import Path

import pytest

from fedscale.data.shards import Sample, file_sha256, read_shard, write_shard
from fedscale.errors import UserError

SAMPLES = [
    Sample("00000000", b"\xff\xd8 an image", "jpg", label=3, source="cat/1.jpg"),
    Sample("00000001", b"\x89PNG" + bytes(700), "png", keyword="grey cat", source="ü.png"),
    Sample("00000002", b"x" * 512, "jpg", label=0, caption="A cat."),
]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    write_shard(tmp_path / "00000.tar", SAMPLES)
    return tmp_path / "00000.tar"


def test_what_is_written_is_read_back(shard: Path) -> None:
    assert list(read_shard(shard)) == SAMPLES


def test_equal_samples_are_equal_bytes(shard: Path, tmp_path: Path) -> None:
    written = write_shard(tmp_path / "again.tar", iter(SAMPLES))
    assert (tmp_path / "again.tar").read_bytes() == shard.read_bytes()
    assert written.samples == 3
    assert written.bytes == shard.stat().st_size
    assert written.sha256 == file_sha256(shard)


def test_the_ordinary_tar_reader_agrees(shard: Path) -> None:
    with tarfile.open(shard) as archive:
        members = archive.getmembers()
        assert [m.name for m in members][:3] == ["00000000.jpg", "00000000.cls", "00000000.json"]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
        stream = archive.extractfile("00000001.json")
        assert stream is not None
        assert json.load(stream) == {"keyword": "grey cat", "source": "ü.png"}


def test_webdataset_reads_it(shard: Path) -> None:
    import webdataset

    rows = list(webdataset.WebDataset(str(shard), shardshuffle=False, nodesplitter=None))
    assert [row["__key__"] for row in rows] == ["00000000", "00000001", "00000002"]
    assert rows[0]["jpg"] == SAMPLES[0].image
    assert rows[0]["cls"] == b"3"
    assert "cls" not in rows[1]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def failing():
        yield SAMPLES[0]
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "00000.tar", failing())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [100, 512, 1024, 1536, 3000, 4096, -10_240, -1024, -600])
def test_a_shard_cut_anywhere_is_refused(shard: Path, cut: int) -> None:
    whole = shard.read_bytes()
    content = len(whole.rstrip(b"\0"))
    end = cut if cut > 0 else content + 512 - content % 512 + (600 if cut == -600 else 0)
    shard.write_bytes(whole[:end])
    with pytest.raises(UserError, match="not a whole shard"):
        list(read_shard(shard))


@pytest.mark.parametrize("garbage", [b"\x00", b"\xff"])
def test_a_damaged_header_is_refused_not_taken_for_the_end(shard: Path, garbage: bytes) -> None:
    whole = bytearray(shard.read_bytes())
    whole[1024:1536] = garbage * 512
    shard.write_bytes(whole)
    with pytest.raises(UserError, match="not a whole shard"):
        list(read_shard(shard))


def _tar(path: Path, *members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    import io

    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), kind
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    "members",
    [
        [("../a.jpg", b"x")],
        [("a.b.jpg", b"x")],
        [("a.pyd", b"x")],
        [("a.json", b"{}")],
        [("a.jpg", b"x"), ("a.png", b"x")],
        [("a.jpg", b"x"), ("a.jpg", b"x")],
        [("a.jpg", b"x"), ("b.jpg", b"x"), ("a.cls", b"1")],
        [("a.jpg", b"x"), ("a.cls", b"cat")],
        [("a.jpg", b"x"), ("a.json", b"{")],
        [("a.jpg", b"x"), ("a.json", b"[]")],
    ],
)
def test_members_that_are_no_samples_are_refused(tmp_path: Path, members: list[tuple[str, bytes]]) -> None:
    with pytest.raises(UserError, match="not a whole shard"):
        list(read_shard(_tar(tmp_path / "bad.tar", *members)))


def test_a_link_is_refused(tmp_path: Path) -> None:
    path = _tar(tmp_path / "bad.tar", ("a.jpg", b""), kind=tarfile.SYMTYPE)
    with pytest.raises(UserError, match="unexpected member"):
        list(read_shard(path))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"00007\.tar: no such shard"):
        list(read_shard(tmp_path / "00007.tar"))
