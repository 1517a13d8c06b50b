"""Every kind of damage is found and named, also the kinds that webdataset passes over."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedscale.cli import app
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.shards import Sample, Written, write_shard
from fedscale.data.verify import Fault, checked_samples, verify_shards
from fedscale.errors import UserError
from fedscale.progress import SilentReporter

WORDS = ("cat", "dog")
SAMPLES = 10
STEP = 512 + 512 + 512 + 512  # bytes of a sample: a .jpg of 400 bytes and a .json, each after its header
WRONG = STEP * 4  # where the header of the fifth sample's .jpg lies


def info(file: str, written: Written, histogram: dict[str, int]) -> ShardInfo:
    return ShardInfo(file, written.samples, written.bytes, written.sha256, histogram, written.members, written.index)


def pool_sample(number: int) -> Sample:
    return Sample(f"{number:08d}", bytes([number + 1]) * 400, "jpg", keyword=WORDS[number % 2])


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Three pool shards and one training shard of ten samples each."""
    root = tmp_path / "shards"
    pool = []
    for shard in range(3):
        file = f"pool/{shard:05d}.tar"
        written = write_shard(root / file, map(pool_sample, range(shard * SAMPLES, (shard + 1) * SAMPLES)))
        pool.append(info(file, written, {"cat": 5, "dog": 5}))
    labelled = [Sample(f"{i:08d}", b"image", "png", label=i % 2) for i in range(SAMPLES)]
    train = info("train/00000.tar", write_shard(root / "train/00000.tar", labelled), {"cat": 5, "dog": 5})
    manifest = Manifest(root, "pets", WORDS, "f", {"train": (train,), "pool": tuple(pool)}, {})
    manifest.save()
    return manifest


def faults(manifest: Manifest, **how: bool) -> list[Fault]:
    return verify_shards(manifest.root, SilentReporter(), **how)


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


def without(path: Path, member: str) -> None:
    """The same tar without one member, as a careless tool would pack it anew."""
    buffer = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as new:
        for found in old:
            if found.name != member:
                new.addfile(found, old.extractfile(found))
    path.write_bytes(buffer.getvalue())


# what is done to a shard; the reason that is given; whether headers alone tell; whether webdataset says nothing
TABLE = {
    "cut at sample": (damaged(lambda b: b[:WRONG]), "cut after 00000013.json", True, True),
    "cut at member": (damaged(lambda b: b[: WRONG + 1024]), "cut after 00000014.jpg", True, True),
    "cut in header": (damaged(lambda b: b[: WRONG + 100]), "cut inside the header after 00000013.json", True, True),
    "cut in data": (damaged(lambda b: b[: WRONG + 600]), "cut inside 00000014.jpg", True, False),
    "garbage header": (damaged(lambda b: b[:WRONG] + b"\xff" * 512 + b[WRONG + 512 :]), "no tar header", True, True),
    "zeroed header": (damaged(lambda b: b[:WRONG] + bytes(512) + b[WRONG + 512 :]), "zeroed header", True, True),
    "empty file": (damaged(lambda b: b""), "empty file", True, False),
    "no end blocks": (damaged(lambda b: b[: STEP * SAMPLES]), "end-of-archive blocks are missing", True, True),
    "an image missing": (lambda path: without(path, "00000014.jpg"), "sample 00000014 has no images", True, True),
    "a .json missing": (lambda path: without(path, "00000014.json"), "9 members .json, expected 10", True, True),
    "a flipped byte": (damaged(lambda b: b[: WRONG + 600] + b"!" + b[WRONG + 601 :]), "SHA-256", False, True),
    "missing": (Path.unlink, "no such shard", True, False),
}
damages = pytest.mark.parametrize(("damage", "reason", "by_headers", "silent"), TABLE.values(), ids=TABLE)


@damages
def test_each_damage_is_found_with_its_shard_and_reason(
    manifest: Manifest, damage: Callable[[Path], None], reason: str, by_headers: bool, silent: bool
) -> None:
    assert faults(manifest) == faults(manifest, headers_only=True) == []
    damage(manifest.root / "pool/00001.tar")
    found = faults(manifest)
    assert {fault.shard for fault in found} == {"pool/00001.tar"}
    assert any(reason in fault.reason for fault in found), found
    assert any(reason in fault.reason for fault in faults(manifest, headers_only=True)) == by_headers


@damages
def test_webdataset_itself_says_nothing_of_most(
    manifest: Manifest, damage: Callable[[Path], None], reason: str, by_headers: bool, silent: bool
) -> None:
    """Why there is a reader of our own. Should webdataset learn to see one of these, this test tells."""
    import webdataset

    path = manifest.root / "pool/00001.tar"
    damage(path)
    stream = webdataset.WebDataset(
        str(path), shardshuffle=False, nodesplitter=None, handler=webdataset.handlers.reraise_exception
    )
    try:
        rows = list(stream)
    except Exception:
        assert not silent
    else:
        assert silent
        whole = [row for row in rows if row.keys() >= {"jpg", "json"} and row["jpg"] == row["jpg"][:1] * 400]
        assert len(whole) < SAMPLES or reason.startswith("end-of-archive")


def test_all_faults_are_found_not_the_first_alone(manifest: Manifest) -> None:
    (manifest.root / "pool/00000.tar").write_bytes(b"")
    without(manifest.root / "pool/00002.tar", "00000025.json")
    (manifest.root / "train/00000.tar").unlink()
    (manifest.root / "pool/00007.tar").write_bytes(b"leftover")
    found = faults(manifest)
    named = list(dict.fromkeys(fault.shard for fault in found))
    assert named == ["train/00000.tar", "pool/00000.tar", "pool/00002.tar", "pool/00007.tar"]
    assert Fault("pool/00007.tar", "not in the manifest") in found
    assert Fault("pool/00000.tar", "empty file", expected=10, found=None) in found


def test_processes_find_what_one_process_finds(manifest: Manifest) -> None:
    (manifest.root / "pool/00001.tar").write_bytes(b"")
    write_shard(manifest.root / "pool/00002.tar", map(pool_sample, range(5, 15)))
    alone = verify_shards(manifest.root, SilentReporter())
    assert verify_shards(manifest.root, SilentReporter(), jobs=2) == alone != []


def test_a_key_in_two_shards_of_a_split_is_named(manifest: Manifest) -> None:
    repeated = map(pool_sample, [20, 21, 4, 23, 14, 25, 26, 27, 28, 29])
    written = write_shard(manifest.root / "pool/00002.tar", repeated)
    shards = (*manifest.splits["pool"][:2], info("pool/00002.tar", written, {"cat": 5, "dog": 5}))
    replace(manifest, splits={**manifest.splits, "pool": shards}).save()
    reason = "2 keys that other shards hold too, e.g. 00000004 in pool/00000.tar"
    for headers_only in (False, True):
        (fault,) = faults(manifest, headers_only=headers_only)
        assert (fault.shard, fault.found) == ("pool/00002.tar", 10)
        assert fault.reason == reason
    with pytest.raises(UserError, match=r"key 00000004 appears twice in pool"):
        list(checked_samples(Manifest.load(manifest.root), "pool"))


def test_labels_and_keywords_are_held_against_the_manifest(manifest: Manifest) -> None:
    samples = [Sample(f"{i:08d}", b"image", "png", label=2 if i == 3 else i % 2) for i in range(SAMPLES)]
    written = write_shard(manifest.root / "train/00000.tar", samples)
    counted = manifest.splits["pool"][0]
    splits = {
        "train": (info("train/00000.tar", written, {"cat": 5, "dog": 5}),),
        "pool": (replace(counted, histogram={"cat": 4, "dog": 6}), *manifest.splits["pool"][1:]),
    }
    replace(manifest, splits=splits).save()
    assert [(fault.shard, fault.reason) for fault in faults(manifest)] == [
        ("train/00000.tar", "label 2 on 1 samples, expected 0 to 1"),
        ("train/00000.tar", "other numbers of images a class"),
        ("pool/00000.tar", "other numbers of images a keyword"),
    ]
    assert faults(manifest, headers_only=True) == []


def test_a_manifest_of_an_older_version_is_verified_by_what_it_recorded(manifest: Manifest) -> None:
    tree = json.loads((manifest.root / "manifest.json").read_text())
    for shards in tree["splits"].values():
        for shard in shards:
            del shard["members"], shard["index"]
    del tree["base"], tree["near_duplicates"]
    (manifest.root / "manifest.json").write_text(json.dumps(tree))
    assert faults(manifest) == []
    without(manifest.root / "pool/00000.tar", "00000004.json")
    assert [fault.reason.split()[0] for fault in faults(manifest)] == ["20,480", "SHA-256", "other"]


def test_samples_are_handed_out_up_to_a_difference_and_then_refused(manifest: Manifest) -> None:
    TABLE["a flipped byte"][0](manifest.root / "pool/00000.tar")
    samples = checked_samples(manifest, "pool")
    assert [next(samples).key for _ in range(SAMPLES)] == [f"{number:08d}" for number in range(SAMPLES)]
    with pytest.raises(UserError, match=r"pool/00000\.tar: differs from the manifest \(SHA-256"):
        next(samples)


def test_the_command_prints_the_bad_ones_and_exits_with_2(manifest: Manifest) -> None:
    run = CliRunner()
    good = run.invoke(app, ["shards", "verify", str(manifest.root), "--jobs", "1"])
    assert (good.exit_code, good.stdout) == (0, "4 shards, 40 samples: 0 bad\n")
    (manifest.root / "pool/00001.tar").write_bytes(b"")
    bad = run.invoke(app, ["shards", "verify", str(manifest.root), "--headers-only", "--jobs", "1"])
    assert bad.exit_code == 2
    assert "pool/00001.tar" in bad.stdout and "empty file" in bad.stdout and "pool/00000.tar" not in bad.stdout
    assert bad.stdout.endswith("4 shards, 40 samples: 1 bad\n")
    told = run.invoke(app, ["shards", "verify", str(manifest.root), "--json", "--jobs", "1"])
    assert told.exit_code == 2
    assert json.loads(told.stdout) == {
        "shards": 4,
        "samples": 40,
        "bad": 1,
        "faults": [{"shard": "pool/00001.tar", "reason": "empty file", "expected": 10, "found": None}],
    }
