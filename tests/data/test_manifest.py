"""Where a manifest says that its shards lie, and what it keeps."""

import time
from pathlib import Path

import pytest

from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.errors import UserError


def manifest_of(root: Path, *files: str, base: str | None = None) -> Manifest:
    shards = tuple(ShardInfo(file, 1, 2, "", {}) for file in files)
    return Manifest(root, "web", (), "f", {"pool": shards}, {}, base=base)


@pytest.mark.parametrize(
    ("base", "url"),
    [
        (None, "{root}/a/0.tar"),
        ("/data/crawl", "/data/crawl/a/0.tar"),
        ("/", "/a/0.tar"),
        ("s3://bucket/crawl", "s3://bucket/crawl/a/0.tar"),
        ("pipe:aws s3 cp s3://bucket/{} - | cat", "pipe:aws s3 cp s3://bucket/a/0.tar - | cat"),
    ],
)
def test_a_shard_lies_below_the_base(tmp_path: Path, base: str | None, url: str) -> None:
    manifest_of(tmp_path, "a/0.tar", base=base).save()
    manifest = Manifest.load(tmp_path)
    assert manifest.url(manifest.shards("pool")[0]) == url.replace("{root}", str(tmp_path))


def test_all_that_is_recorded_comes_back(tmp_path: Path) -> None:
    shard = ShardInfo("0.tar", 3, 10_240, "a" * 64, {"cat": 3}, {"jpg": 3, "json": 3}, "b" * 16)
    near = {"of": "pets/test", "method": "phash64", "count": 1, "scanned": 3}
    manifest = Manifest(tmp_path, "web", ("cat",), "f", {"pool": (shard,)}, {"format": "import"}, [], "s3://b", near)
    manifest.save()
    assert Manifest.load(tmp_path) == manifest


@pytest.mark.parametrize("base", [None, "s3://bucket"])
@pytest.mark.parametrize("file", ["../a.tar", "pool/../../a.tar", "/etc/a.tar", "s3://bucket/a.tar"])
def test_a_manifest_whose_shards_lie_elsewhere_is_refused(tmp_path: Path, file: str, base: str | None) -> None:
    manifest_of(tmp_path, file, base=base).save()
    with pytest.raises(UserError, match=r"manifest\.json: .* lies outside the folder"):
        Manifest.load(tmp_path)


@pytest.mark.slow
def test_a_manifest_of_100_000_shards_loads_in_seconds(tmp_path: Path) -> None:
    members = {"jpg": 10_000, "json": 10_000, "txt": 10_000}
    shards = tuple(
        ShardInfo(f"{i:06d}.tar", 10_000, 3 * 10**8, "a" * 64, {}, members, "b" * 16) for i in range(100_000)
    )
    Manifest(tmp_path, "web", (), "f", {"pool": shards}, {}, base="s3://bucket/web").save()
    start = time.process_time()
    manifest = Manifest.load(tmp_path)
    assert time.process_time() - start < 4  # one second on an idle core
    assert manifest.url(manifest.shards("pool")[99_999]) == "s3://bucket/web/099999.tar"
