import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from fedscale import files
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.near_duplicates import FILE, left_out, mark_near_duplicates
from fedscale.data.near_search import Embeddings
from fedscale.data.perceptual_hash import phash, search
from fedscale.data.shards import Sample, write_shard
from fedscale.errors import UserError
from fedscale.progress import SilentReporter

Picture = Image.Image
TESTED = range(8)  # the seeds of the test images


def motif(seed: int, size: tuple[int, int] = (96, 72)) -> Picture:
    """A smooth picture of its own for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Picture, form: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


COPIES: dict[str, Callable[[Picture], bytes]] = {
    "the very same": lambda image: encoded(image),
    "re-encoded": lambda image: encoded(image, "JPEG", quality=50),
    "webp": lambda image: encoded(image, "WEBP", quality=60),
    "smaller": lambda image: encoded(image.resize((48, 36), Image.Resampling.BICUBIC)),
    "larger": lambda image: encoded(image.resize((960, 720), Image.Resampling.BICUBIC), "JPEG"),
    "brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.15)),
    "grey": lambda image: encoded(image.convert("L")),
    "cropped": lambda image: encoded(image.crop((1, 1, 95, 71)), "JPEG"),
}


def shards_of(root: Path, split: str, images: list[bytes], per_shard: int = 6) -> Manifest:
    """A manifest with one split, whose keys are the images' numbers."""
    infos = []
    for number, first in enumerate(range(0, len(images), per_shard)):
        file = f"{split}/{number:05d}.tar"
        (root / split).mkdir(parents=True, exist_ok=True)
        samples = [Sample(f"{first + i:04d}", data, "jpg") for i, data in enumerate(images[first : first + per_shard])]
        written = write_shard(root / file, samples)
        infos.append(ShardInfo(file, written.samples, written.bytes, written.sha256, {}))
    manifest = Manifest(root, root.name, (), "f", {split: tuple(infos)}, {})
    manifest.save()
    return manifest


@pytest.fixture
def against(tmp_path: Path) -> Manifest:
    return shards_of(tmp_path / "judge", "test", [encoded(motif(seed)) for seed in TESTED], per_shard=3)


@pytest.fixture
def pool(tmp_path: Path) -> Manifest:
    """Unrelated images 0 to 9 and 18 to 27, among them copies of test image 0, 1, … as 10, 11, …"""
    unrelated = [encoded(motif(seed), "JPEG") for seed in range(100, 120)]
    copies = [copy(motif(seed)) for seed, copy in zip(TESTED, COPIES.values(), strict=True)]
    return shards_of(tmp_path / "pool", "pool", unrelated[:10] + copies + unrelated[10:])


def rows_of(pool: Manifest) -> dict[str, str]:
    return {row["key"]: row["of"] for row in files.read_jsonl(pool.root / FILE)}


def test_copies_are_found_and_unrelated_images_are_not(pool: Manifest, against: Manifest) -> None:
    reporter = SilentReporter()
    marked = mark_near_duplicates(pool, against, reporter)
    assert rows_of(pool) == {f"{10 + i:04d}": f"{i:04d}" for i in TESTED}
    found = marked.near_duplicates
    assert (found["of"], found["method"], found["threshold"]) == ("judge/test", "phash64", {"distance": 6})
    assert (found["count"], found["scanned"], found["corrupt"]) == (8, 28, 0)
    assert marked == Manifest.load(pool.root)
    assert left_out(marked) == {
        "pool/00001.tar": frozenset({"0010", "0011"}),
        "pool/00002.tar": frozenset({"0012", "0013", "0014", "0015", "0016", "0017"}),
    }
    assert any("8 of 28 pool images" in line for line in reporter.lines)


def test_the_threshold_decides(pool: Manifest, against: Manifest) -> None:
    mark_near_duplicates(pool, against, SilentReporter(), distance=0)
    exact = files.read_jsonl(pool.root / FILE)
    assert {"0010", "0016"} <= {row["key"] for row in exact} < {f"{10 + i:04d}" for i in TESTED}
    assert {row["distance"] for row in exact} == {0}
    assert mark_near_duplicates(pool, against, SilentReporter(), distance=64).near_duplicates["count"] == 28
    with pytest.raises(UserError, match="distance=65: expected 0 to 64"):
        mark_near_duplicates(pool, against, SilentReporter(), distance=65)


@pytest.mark.parametrize("edit", COPIES.values(), ids=COPIES.keys())
def test_a_copy_of_any_motif_is_within_the_default_distance(edit: Callable[[Picture], bytes]) -> None:
    originals = np.array([phash(motif(seed)) for seed in range(30)], dtype=np.uint64)
    copies = [phash(Image.open(io.BytesIO(edit(motif(seed))))) for seed in range(30)]
    nearest, distance = search(np.array(copies, dtype=np.uint64), originals)
    assert nearest.tolist() == list(range(30))
    assert distance.max() <= 6


def test_images_that_do_not_decode_are_skipped_and_shift_nothing(tmp_path: Path) -> None:
    tested = [b"no image", *(encoded(motif(seed)) for seed in TESTED)]
    against = shards_of(tmp_path / "judge", "test", tested, per_shard=3)
    pool = shards_of(tmp_path / "pool", "pool", [b"", encoded(motif(100)), b"no image", encoded(motif(5))])
    marked = mark_near_duplicates(pool, against, SilentReporter())
    assert rows_of(pool) == {"0003": "0006"}
    assert (marked.near_duplicates["scanned"], marked.near_duplicates["corrupt"]) == (2, 2)
    broken = shards_of(tmp_path / "broken", "test", [b"no image"])
    with pytest.raises(UserError, match="no test image decodes"):
        mark_near_duplicates(pool, broken, SilentReporter())


def test_two_processes_find_what_one_finds(pool: Manifest, against: Manifest) -> None:
    mark_near_duplicates(pool, against, SilentReporter())
    alone = (pool.root / FILE).read_bytes(), (pool.root / "manifest.json").read_bytes()
    (pool.root / FILE).unlink()
    mark_near_duplicates(pool, against, SilentReporter(), jobs=2)
    assert ((pool.root / FILE).read_bytes(), (pool.root / "manifest.json").read_bytes()) == alone


def test_what_was_found_stands_until_the_settings_or_the_shards_change(pool: Manifest, against: Manifest) -> None:
    marked = mark_near_duplicates(pool, against, SilentReporter())
    first = pool.path(pool.shards("pool")[0])
    first.unlink()
    reporter = SilentReporter()
    assert mark_near_duplicates(marked, against, reporter) == marked  # although a shard is gone: none was read
    assert any("found already, 8 of 28" in line for line in reporter.lines)
    others = replace(against, splits={"test": against.splits["test"][:1]})
    for changed in ({"distance": 2}, {"against": others}):
        with pytest.raises(UserError, match=r"00000\.tar"):
            mark_near_duplicates(**{"pool": marked, "against": against, "reporter": reporter, **changed})
    assert left_out(Manifest.load(pool.root)) == left_out(marked)  # a search that failed has changed nothing


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_shard_that_cannot_be_read_is_named_and_nothing_is_written(
    jobs: int, pool: Manifest, against: Manifest
) -> None:
    pool.path(pool.shards("pool")[1]).unlink()
    with pytest.raises(UserError, match=r"^\S+/pool/00001\.tar: no such shard; build or import the shards again$"):
        mark_near_duplicates(pool, against, SilentReporter(), jobs=jobs)
    assert not (pool.root / FILE).exists()
    assert Manifest.load(pool.root) == pool


def embedding(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=16).astype(np.float16)


def test_stored_embeddings_find_what_the_hash_does_not(tmp_path: Path, against: Manifest) -> None:
    mirrored = encoded(motif(3).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    images = [encoded(motif(100)), mirrored, encoded(motif(4)), encoded(motif(101)), b"no image", encoded(motif(102))]
    pool = shards_of(tmp_path / "pool", "pool", [*images, encoded(motif(103))])
    vectors = [embedding(100), 2 * embedding(3), embedding(99), 0 * embedding(1), embedding(1), embedding(7)]
    embeddings = Embeddings(
        stored=lambda shard: np.stack(vectors) if shard.file == "pool/00000.tar" else None,
        references=np.stack([embedding(seed) for seed in TESTED]),
        similarity=0.95,
    )
    reporter = SilentReporter()
    marked = mark_near_duplicates(pool, against, reporter, embeddings=embeddings)
    assert files.read_jsonl(pool.root / FILE) == [
        {"shard": "pool/00000.tar", "key": "0001", "of": "0003", "similarity": 1.0},
        {"shard": "pool/00000.tar", "key": "0002", "of": "0004", "distance": 0},
        {"shard": "pool/00000.tar", "key": "0005", "of": "0007", "similarity": 1.0},
    ]
    assert marked.near_duplicates["threshold"] == {"distance": 6, "similarity": 0.95}
    assert any("1 shards have no embeddings" in line for line in reporter.lines)
    vectors_of_all = replace(embeddings, stored=lambda shard: np.stack(vectors[: shard.samples]))
    again = mark_near_duplicates(marked, against, reporter, embeddings=vectors_of_all)
    assert again.near_duplicates["without_embeddings"] == 0  # what lacked embeddings was compared again


def test_embeddings_that_do_not_fit_are_refused(pool: Manifest, against: Manifest) -> None:
    references = np.stack([embedding(seed) for seed in TESTED])
    for stored, given, says in (
        (np.zeros((5, 16)), references, r"pool/00000\.tar: embeddings of shape \[5, 16\], expected \[6, 16\]"),
        (np.zeros((6, 15)), references, r"embeddings of shape \[6, 15\], expected \[6, 16\]"),
        (np.zeros((6, 16)), references[1:], "7 embeddings of 8 test images"),
    ):
        embeddings = Embeddings(lambda shard, stored=stored: stored, given, 0.95)
        with pytest.raises(UserError, match=says):
            mark_near_duplicates(pool, against, SilentReporter(), embeddings=embeddings)
    assert not (pool.root / FILE).exists()


def test_a_pool_that_nobody_searched_leaves_nothing_out(pool: Manifest) -> None:
    assert left_out(pool) == {}


def test_a_list_that_is_not_the_manifests_is_refused(pool: Manifest, against: Manifest) -> None:
    marked = mark_near_duplicates(pool, against, SilentReporter())
    rows = files.read_jsonl(pool.root / FILE)
    files.write_jsonl(pool.root / FILE, rows[1:])
    with pytest.raises(UserError, match="7 rows, expected the manifest's 8"):
        left_out(marked)
    (pool.root / FILE).unlink()
    with pytest.raises(UserError, match="0 rows, expected the manifest's 8"):
        left_out(marked)
    mark_near_duplicates(marked, against, SilentReporter())
    assert files.read_jsonl(pool.root / FILE) == rows
    assert json.loads((pool.root / "manifest.json").read_text())["near_duplicates"]["count"] == 8


def test_the_search_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedscale.data.perceptual_hash.PAIRS", 200)  # several blocks, the last one smaller
    rng = np.random.default_rng(1)
    references = rng.integers(0, 2**64, 70, dtype=np.uint64)
    hashes = np.concatenate(
        [rng.integers(0, 2**64, 20, dtype=np.uint64), references[[69, 0, 33]] ^ np.uint64(2**63 | 5)]
    )
    nearest, distance = search(hashes, references)
    for row, value in enumerate(hashes.tolist()):
        expected = [(value ^ reference).bit_count() for reference in references.tolist()]
        assert (distance[row], nearest[row]) == (min(expected), expected.index(min(expected)))
    assert nearest[-3:].tolist() == [69, 0, 33]
    assert distance[-3:].tolist() == [3, 3, 3]
