"""Pools that others made are used where they lie; the fixture writes them as img2dataset does."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedscale.cli import app
from fedscale.data.manifest import Manifest
from fedscale.data.pools import import_pool
from fedscale.data.shards import read_shard
from fedscale.data.verify import verify_shards
from fedscale.errors import UserError
from fedscale.progress import SilentReporter
from fedscale.storage import storage_at


def facts(key: str, caption: str | None) -> dict[str, object]:
    """The .json that img2dataset writes beside an image."""
    return {
        "caption": caption,
        "url": f"https://example.org/{key}.jpg",
        "key": key,
        "status": "success",
        "error_message": None,
        "width": 256,
        "height": 256,
        "original_width": 512,
        "original_height": 512,
        "exif": "{}",
        "sha256": "0" * 64,
    }


def crawled(shard: int, count: int = 4) -> list[tuple[str, dict[str, bytes]]]:
    """(key, members) of img2dataset's shard: nine digits, five of the shard and four of the sample."""
    rows = []
    for number in range(count):
        key = f"{shard:05d}{number:04d}"
        caption = f"A photo of nümber {number}"
        told = json.dumps(facts(key, caption), indent=4).encode()
        rows.append((key, {"jpg": b"\xff\xd8" + bytes([number]) * 900, "json": told, "txt": caption.encode()}))
    return rows


def write_with_tarfile(path: Path, rows: list[tuple[str, dict[str, bytes]]], form: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for key, members in rows:
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size, info.mtime, info.uname = len(data), 1_700_000_000.25, "bigdata"
                archive.addfile(info, io.BytesIO(data))


@pytest.fixture(params=["webdataset", "gnu", "pax"])
def crawl(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder 00000.tar to 00002.tar of four samples each, with the .parquet and .json that lie beside them."""
    import webdataset

    folder = tmp_path / "crawl"
    folder.mkdir()
    for shard in range(3):
        if request.param == "webdataset":
            with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as writer:
                for key, members in crawled(shard):
                    writer.write({"__key__": key, **members})
        else:
            form = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}[request.param]
            write_with_tarfile(folder / f"{shard:05d}.tar", crawled(shard), form)
        (folder / f"{shard:05d}.parquet").touch()
        (folder / f"{shard:05d}_stats.json").touch()
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The same in one format, for what does not depend on it."""
    for shard in range(3):
        write_with_tarfile(tmp_path / f"crawl/{shard:05d}.tar", crawled(shard), tarfile.USTAR_FORMAT)
    return tmp_path / "crawl"


def imported(*patterns: str | Path, out: Path, **how: object) -> Manifest:
    return import_pool([str(pattern) for pattern in patterns], out, SilentReporter(), **{"jobs": 1, **how})  # type: ignore[arg-type]


def test_a_crawl_is_imported_verified_and_read_where_it_lies(crawl: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in crawl.iterdir()}
    manifest = imported(crawl, out=tmp_path / "pool")
    assert manifest == Manifest.load(tmp_path / "pool")
    assert manifest.base == str(crawl)
    shards = manifest.shards("pool")
    assert [(shard.file, shard.samples, shard.bytes, shard.sha256, shard.histogram) for shard in shards] == [
        (f"0000{i}.tar", 4, (crawl / f"0000{i}.tar").stat().st_size, "", {}) for i in range(3)
    ]
    assert shards[0].members == {"jpg": 4, "json": 4, "txt": 4}
    assert len({shard.index for shard in shards}) == 3
    assert verify_shards(tmp_path / "pool", SilentReporter()) == []
    samples = [sample for shard in shards for sample in read_shard(manifest.url(shard))]
    assert [sample.key for sample in samples] == [f"{s:05d}{n:04d}" for s in range(3) for n in range(4)]
    assert samples[1].keyword == "A photo of nümber 1"
    assert (samples[1].image, samples[1].suffix) == (b"\xff\xd8" + b"\x01" * 900, "jpg")
    assert samples[1].source == "https://example.org/000000001.jpg"
    assert {path: path.stat().st_mtime_ns for path in crawl.iterdir()} == before


def test_hashes_are_recorded_where_asked_for(small: Path, tmp_path: Path) -> None:
    manifest = imported(small, out=tmp_path / "pool", hash=True)
    assert [shard.sha256 for shard in manifest.shards("pool")] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(small.iterdir())
    ]
    content = bytearray((small / "00001.tar").read_bytes())
    content[700] ^= 1
    (small / "00001.tar").write_bytes(content)
    (fault,) = verify_shards(tmp_path / "pool", SilentReporter())
    assert fault.shard == "00001.tar" and fault.reason.startswith("SHA-256")


def test_every_place_and_any_number_of_jobs_gives_the_same_shards(small: Path, tmp_path: Path, bucket: str) -> None:
    for path in small.iterdir():
        storage_at(f"{bucket}/crawl").publish(path.name, path.read_bytes())
    local = imported(small, out=tmp_path / "local")
    places = {
        "processes": ([str(small)], str(small)),
        "s3": ([f"{bucket}/crawl/{{00000..00002}}.tar"], f"{bucket}/crawl"),
        "s3-folder": ([f"{bucket}/crawl"], f"{bucket}/crawl"),
        "pipe": ([f"pipe:cat {small}/{{00000..00002}}.tar | cat"], f"pipe:cat {small}/{{}} | cat"),
    }
    for name, (patterns, base) in places.items():
        manifest = imported(*patterns, out=tmp_path / name, jobs=2)
        assert (manifest.splits, manifest.fingerprint) == (local.splits, local.fingerprint)
        assert manifest.base == base
        assert verify_shards(tmp_path / name, SilentReporter(), headers_only=True) == []
        assert next(s.key for s in read_shard(manifest.url(manifest.shards("pool")[2]))) == "000020000"


def test_shards_beside_the_manifest_need_no_base(small: Path) -> None:
    manifest = imported(small, out=small)
    assert manifest.base is None
    assert manifest.path(manifest.shards("pool")[0]) == small / "00000.tar"
    assert verify_shards(small, SilentReporter()) == []


def test_shards_of_several_folders_keep_their_folders(tmp_path: Path) -> None:
    for number, folder in enumerate(("a/x", "a/y")):
        write_with_tarfile(tmp_path / folder / f"{number:05d}.tar", crawled(number), tarfile.USTAR_FORMAT)
    manifest = imported(tmp_path / "a/x", tmp_path / "a/y", out=tmp_path / "pool")
    assert manifest.base == f"{tmp_path}/a"
    assert [shard.file for shard in manifest.shards("pool")] == ["x/00000.tar", "y/00001.tar"]
    assert verify_shards(tmp_path / "pool", SilentReporter()) == []


def test_two_shards_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        write_with_tarfile(tmp_path / folder / "00000.tar", crawled(0), tarfile.USTAR_FORMAT)
    with pytest.raises(UserError, match=r"y/00000\.tar: has the same name as x/00000\.tar.*rename"):
        imported(tmp_path / "x", tmp_path / "y", out=tmp_path / "pool")
    with pytest.raises(UserError, match=r"00000\.tar: is named twice"):
        imported(tmp_path / "x", tmp_path / "x", out=tmp_path / "pool")
    assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize(
    ("patterns", "says"),
    [
        (["{small}", "s3://bucket/0.tar"], "one store"),
        (["s3://one/0.tar", "s3://two/1.tar"], "one bucket"),
        (["s3://one/0.tar", "gs://one/1.tar"], "one store"),
        (["pipe:cat", "pipe:cat 1.tar"], "names 0 tars"),
        (["pipe:cat 0.tar 1.tar"], "names 2 tars"),
        (["{small}/9*.tar"], "no such shards"),
    ],
)
def test_patterns_that_make_no_pool_are_one_line(small: Path, tmp_path: Path, patterns: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        imported(*(pattern.replace("{small}", str(small)) for pattern in patterns), out=tmp_path / "pool")
    assert "\n" not in str(caught.value)


def test_broken_shards_are_all_named_and_left_out_if_asked(small: Path, tmp_path: Path) -> None:
    (small / "00000.tar").write_bytes(b"")
    whole = (small / "00002.tar").read_bytes()
    (small / "00002.tar").write_bytes(whole[:2000])
    named = r"2 of 3 shards are broken: 00000\.tar \(empty file\); 00002\.tar \(cut inside the header.*--skip-broken"
    with pytest.raises(UserError, match=named):
        imported(small, out=tmp_path / "pool")
    assert not (tmp_path / "pool").exists()
    manifest = imported(small, out=tmp_path / "pool", skip_broken=True)
    assert [shard.file for shard in manifest.shards("pool")] == ["00001.tar"]
    assert [entry["name"] for entry in manifest.excluded] == ["00000.tar", "00002.tar"]
    (small / "00001.tar").unlink()
    with pytest.raises(UserError, match="no whole shard among 2"):
        imported(small, out=tmp_path / "other", skip_broken=True)


def test_a_shard_or_a_command_that_fails_is_broken_not_the_end_of_all(small: Path, tmp_path: Path, bucket: str) -> None:
    storage_at(f"{bucket}/crawl").publish("00000.tar", (small / "00000.tar").read_bytes())
    patterns = {
        f"{bucket}/crawl/{{00000..00001}}.tar": "no such shard",
        f"pipe:cat {small}/{{00000,9}}.tar": "status 1",
    }
    for number, (pattern, reason) in enumerate(patterns.items()):
        manifest = imported(pattern, out=tmp_path / str(number), skip_broken=True, jobs=2)
        assert [shard.file for shard in manifest.shards("pool")] == ["00000.tar"]
        assert reason in manifest.excluded[0]["reason"]


def test_an_import_is_made_anew_but_never_over_built_shards(small: Path, tmp_path: Path) -> None:
    first = imported(small / "00000.tar", out=tmp_path / "pool")
    again = imported(small, out=tmp_path / "pool")
    assert (first.num_samples("pool"), again.num_samples("pool")) == (4, 12)
    assert first.fingerprint != again.fingerprint
    Manifest(tmp_path / "built", "pets", (), "f", {}, {"format": "folder"}).save()
    with pytest.raises(UserError, match="holds built shards"):
        imported(small, out=tmp_path / "built")


def test_a_changed_shard_of_a_pool_is_found_by_its_headers(small: Path, tmp_path: Path) -> None:
    imported(small, out=tmp_path / "pool")
    write_with_tarfile(small / "00001.tar", crawled(1, count=3), tarfile.USTAR_FORMAT)
    (small / "00002.tar").unlink()
    found = verify_shards(tmp_path / "pool", SilentReporter(), headers_only=True)
    assert {fault.shard for fault in found} == {"00001.tar", "00002.tar"}
    assert [fault.reason for fault in found][-1] == "no such shard"
    assert {"3 samples, expected 4", "3 members .jpg, expected 4"} <= {fault.reason for fault in found}


def test_the_command_imports_and_shows_what_it_made(small: Path, tmp_path: Path) -> None:
    run = CliRunner()
    out = str(tmp_path / "pool")
    shown = run.invoke(app, ["shards", "import", f"{small}/{{00000..00001}}.tar", "--out", out, "--json"])
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)
    assert (told["imported"], told["shards"], told["samples"], told["base"]) == (True, 2, 8, str(small))
    status = run.invoke(app, ["shards", "status", out])
    assert "8" in status.stdout and f"imported: {small}" in status.stdout
    (small / "00000.tar").write_bytes(b"")
    broken = run.invoke(app, ["shards", "import", str(small), "--out", out])
    assert broken.exit_code == 2
    (line,) = broken.stderr.strip().splitlines()
    assert line.startswith("error: 1 of 3 shards are broken: 00000.tar (empty file)")
    left_out = run.invoke(app, ["shards", "import", str(small), "--out", out, "--skip-broken"])
    assert "1 broken shards left out" in left_out.stdout


def test_status_shows_near_duplicates(small: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    pool = imported(small, out=tmp_path / "pool")
    found = {"of": "pets/test", "method": "phash64", "threshold": {"distance": 6}, "count": 2, "scanned": 12}
    replace(pool, near_duplicates=found).save()
    shown = CliRunner().invoke(app, ["shards", "status", str(tmp_path / "pool")])
    assert "near-duplicates of pets/test: 2 of 12 images (phash64, distance 6)" in shown.stdout


def test_what_was_left_out_stays_left_out_when_the_pool_grows(crawl: Path, tmp_path: Path) -> None:
    import dataclasses

    from fedscale import files
    from fedscale.data.near_duplicates import left_out

    pattern = str(crawl / "{00000..00001}.tar")
    first = import_pool([pattern], tmp_path / "pool", SilentReporter())
    files.write_jsonl(tmp_path / "pool/near_duplicates.jsonl", [{"shard": "00001.tar", "key": "000010002"}])
    dataclasses.replace(first, near_duplicates={"of": "data/test", "count": 1}).save()
    reporter = SilentReporter()
    grown = import_pool([str(crawl)], tmp_path / "pool", reporter)
    assert left_out(grown) == {"00001.tar": {"000010002"}}
    assert any("near-duplicates of data/test again" in line for line in reporter.lines)


def test_shards_in_folders_below_are_named_with_the_pattern_that_finds_them(crawl: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no \*\.tar but in folders below; name '.*/\*\*/\*\.tar'"):
        import_pool([str(crawl.parent)], tmp_path / "pool", SilentReporter())
    assert import_pool([f"{crawl.parent}/**/*.tar"], tmp_path / "pool", SilentReporter()).num_samples("pool") == 12
