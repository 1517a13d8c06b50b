import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from fedscale.data.members import Contents
from fedscale.data.shards import Sample, file_sha256, read_shard, write_shard
from fedscale.data.tar import BrokenShard
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
    ],
)
def test_members_that_are_no_samples_are_refused(tmp_path: Path, members: list[tuple[str, bytes]]) -> None:
    with pytest.raises(UserError, match="not a whole shard"):
        list(read_shard(_tar(tmp_path / "bad.tar", *members)))


def test_a_link_is_refused(tmp_path: Path) -> None:
    path = _tar(tmp_path / "bad.tar", ("a.jpg", b""), kind=tarfile.SYMTYPE)
    with pytest.raises(UserError, match=r"a\.jpg is a symbolic link"):
        list(read_shard(path))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"00007\.tar: no such shard"):
        list(read_shard(tmp_path / "00007.tar"))


def test_one_reading_gives_the_hash_and_the_index_that_the_writer_recorded(tmp_path: Path) -> None:
    written = write_shard(tmp_path / "0.tar", SAMPLES)
    digest, contents = hashlib.sha256(), Contents()
    assert len(list(read_shard(tmp_path / "0.tar", digest=digest, contents=contents))) == 3
    assert digest.hexdigest() == written.sha256
    assert (contents.samples, contents.members, contents.index) == (3, written.members, written.index)
    assert written.members == {"jpg": 2, "png": 1, "json": 3, "cls": 2, "txt": 1}


def test_skipped_samples_are_hashed_and_not_parsed(tmp_path: Path) -> None:
    path = _tar(tmp_path / "0.tar", ("a.jpg", b"1"), ("a.cls", b"cat"), ("b.jpg", b"2"))
    digest = hashlib.sha256()
    assert [sample.key for sample in read_shard(path, skip=1, digest=digest)] == ["b"]
    assert digest.hexdigest() == file_sha256(path)
    assert list(read_shard(path, skip=5)) == []
    with pytest.raises(BrokenShard, match=r"sample a has a \.cls that cannot be read"):
        list(read_shard(path))


@pytest.mark.parametrize("odd", [b"", b"{", b"[1]", b"\xff\xfe{}", b"[" * 200_000, b'{"keyword": 3}'])
def test_an_odd_json_costs_its_facts_and_not_the_shard(tmp_path: Path, odd: bytes) -> None:
    path = _tar(tmp_path / "0.tar", ("a.jpg", b"1"), ("a.txt", b"a cat"), ("a.json", odd), ("b.jpg", b"2"))
    assert [(sample.key, sample.keyword) for sample in read_shard(path)] == [("a", "a cat"), ("b", None)]


def test_a_folder_in_the_place_of_a_shard_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "0.tar").mkdir()
    with pytest.raises(UserError, match=r"0\.tar: cannot be read \(is a directory\)"):
        list(read_shard(tmp_path / "0.tar"))


def test_an_image_over_the_limit_is_left_out_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    write_shard(path, [Sample("a", bytes(2000), "jpg", keyword="cat"), Sample("b", bytes(1000), "png", keyword="dog")])
    digest = hashlib.sha256()
    large, small = read_shard(path, max_image=1000, digest=digest)
    assert (large.key, large.image, large.keyword) == ("a", b"", "cat")
    assert large.too_large == "2,000 bytes, above 1,000"
    assert (small.image, small.too_large) == (bytes(1000), "")
    assert digest.hexdigest() == file_sha256(path)


def test_other_members_over_the_limit_break_the_shard_unless_nobody_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedscale.data.shards.MAX_TEXT", 100)
    ignored = _tar(tmp_path / "0.tar", ("a.jpg", b"x"), ("a.npy", bytes(101)))
    assert len(list(read_shard(ignored))) == 1
    with pytest.raises(BrokenShard, match=r"a\.txt has 101 bytes, expected 100 at most"):
        list(read_shard(_tar(tmp_path / "1.tar", ("a.jpg", b"x"), ("a.txt", bytes(101)))))


@pytest.mark.parametrize(
    ("members", "keyword"),
    [
        ({"json": {"keyword": "owl", "caption": "c"}, "txt": "t"}, "owl"),
        ({"json": {"caption": "c"}, "txt": "an owl \u00fc"}, "an owl \u00fc"),
        ({"json": {"caption": "an owl"}}, "an owl"),
        ({"json": {"caption": None}}, None),
        ({}, None),
    ],
)
def test_the_keyword_of_a_foreign_sample_is_the_crawls_text(
    tmp_path: Path, members: dict[str, object], keyword: str | None
) -> None:
    encoded = {ext: (m if isinstance(m, str) else json.dumps(m)).encode() for ext, m in members.items()}
    path = _tar(tmp_path / "0.tar", ("0.webp", b"x"), *((f"0.{ext}", data) for ext, data in encoded.items()))
    (sample,) = read_shard(path)
    assert (sample.suffix, sample.keyword) == ("webp", keyword)


def test_a_caption_of_ours_is_no_keyword_and_a_keyword_no_caption(tmp_path: Path) -> None:
    ours = [Sample("a", b"x", "jpg", 1, caption="A cat."), Sample("b", b"x", "jpg", keyword="cat", caption="A cat.")]
    write_shard(tmp_path / "0.tar", ours)
    assert list(read_shard(tmp_path / "0.tar")) == ours


def test_a_text_in_another_encoding_spoils_no_shard(tmp_path: Path) -> None:
    (sample,) = read_shard(_tar(tmp_path / "0.tar", ("0.jpg", b"x"), ("0.txt", b"caf\xe9")))
    assert sample.keyword == "caf\ufffd"


@pytest.mark.parametrize("key", ["img_0.5x", "a/b", "", "\u00fc", "a" * 91])
def test_a_key_that_would_not_come_back_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=r"0\.tar: cannot hold key .* rename"):
        write_shard(tmp_path / "0.tar", [Sample(key, b"x", "jpg")])
    assert list(tmp_path.iterdir()) == []


def test_a_key_written_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="key a comes twice"):
        write_shard(tmp_path / "0.tar", [Sample("a", b"x", "jpg"), Sample("b", b"x", "jpg"), Sample("a", b"x", "jpg")])


def test_a_shard_is_read_from_an_object_store_and_from_a_command(shard: Path, bucket: str) -> None:
    from fedscale.storage import storage_at

    storage_at(bucket).publish("0.tar", shard.read_bytes())
    for url in (f"{bucket}/0.tar", f"pipe:cat {shard}"):
        digest = hashlib.sha256()
        assert list(read_shard(url, digest=digest)) == SAMPLES
        assert digest.hexdigest() == file_sha256(shard)
    with pytest.raises(UserError, match=r"1\.tar: no such shard"):
        list(read_shard(f"{bucket}/1.tar"))


def test_a_command_that_fails_after_a_whole_shard_does_not_pass_for_one(shard: Path) -> None:
    with pytest.raises(UserError, match="status 1"):
        list(read_shard(f"pipe:cat {shard}; exit 1"))
