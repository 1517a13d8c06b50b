"""Stage 3 on three colours: which images are drawn, how they are labelled, what the stage leaves behind."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedscale import files
from fedscale.config.schema import AlignConfig, Config, ModelConfig
from fedscale.data.images import encode_png
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.shards import Sample, write_shard
from fedscale.errors import Stopped, UserError
from fedscale.models import build_model
from fedscale.progress import SilentReporter
from fedscale.runs import RunFolder
from fedscale.server.align import stage as align
from fedscale.server.align.draw import Pool, draw
from fedscale.server.caption import run as caption
from fedscale.session import Session

COLOURS = ("red", "green", "dark_blue")
SIZE = 16


def picture(colour: int, number: int) -> bytes:
    """A noisy square of one colour."""
    pixels = np.random.default_rng([colour, number]).integers(0, 120, (SIZE, SIZE, 3))
    pixels[..., colour] += 100
    return encode_png(pixels.astype(np.uint8))


def colour_teacher(images: torch.Tensor) -> torch.Tensor:
    """Logits by the mean of each channel: right about every picture."""
    return images.float().mean(dim=(1, 2)) / 10


def shard(root: Path, file: str, samples: list[Sample]) -> ShardInfo:
    histogram = Counter(COLOURS[s.label] if s.label is not None else str(s.keyword) for s in samples)
    written = write_shard(root / file, samples)
    return ShardInfo(file, written.samples, written.bytes, written.sha256, dict(histogram))


def make_data(root: Path, pool: list[tuple[int, str, bytes | None]]) -> Manifest:
    """Train and test of every colour; a pool of (colour, keyword, bytes instead of the picture) in two shards."""
    number = iter(range(10_000))

    def labelled(per_class: int) -> list[Sample]:
        return [
            Sample(f"{(n := next(number)):08d}", picture(colour, n), "png", label=colour)
            for _ in range(per_class)
            for colour in range(3)
        ]

    def wild(part: list[tuple[int, str, bytes | None]]) -> list[Sample]:
        return [
            Sample(f"{(n := next(number)):08d}", image or picture(colour, n), "png", keyword=keyword)
            for colour, keyword, image in part
        ]

    half = len(pool) // 2
    splits = {
        "train": (shard(root, "train/00000.tar", labelled(4)),),
        "test": (shard(root, "test/00000.tar", labelled(6)),),
        "pool": (shard(root, "pool/00000.tar", wild(pool[:half])), shard(root, "pool/00001.tar", wild(pool[half:]))),
    }
    manifest = Manifest(root, "colours", COLOURS, "c" * 16, splits, {})
    manifest.save()
    return manifest


# 12 of each colour; the keyword of every fourth is wrong, of some no class at all, and it may be spelt otherwise.
POOL: list[tuple[int, str, bytes | None]] = [
    (colour, ("Dark Blue" if colour == 2 else COLOURS[colour]) if n % 4 else COLOURS[(colour + 1) % 3], None)
    for n in range(12)
    for colour in range(3)
] + [(0, "sunset", None), (1, "meadow", None)]


@dataclasses.dataclass
class World:
    """A run folder with its pool captioned and a federated model in it."""

    config: Config
    manifest: Manifest
    run: RunFolder

    def with_align(self, **settings) -> Config:
        return dataclasses.replace(self.config, align=dataclasses.replace(self.config.align, **settings))

    def drawn(self, session: Session | None = None, seed: int | None = None, **settings):
        config = self.with_align(**settings)
        config = dataclasses.replace(config, seed=config.seed if seed is None else seed)
        pool = Pool(config, self.manifest, self.run, COLOURS)
        return draw(config, pool, COLOURS, colour_teacher, session or Session())


@pytest.fixture
def make_world(tmp_path: Path):
    def make(pool: list[tuple[int, str, bytes | None]] = POOL) -> World:
        manifest = make_data(tmp_path / "data", pool)
        config = Config(name="t", out=str(tmp_path / "runs"), device="cpu", model=ModelConfig(width=4))
        config = dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, dir=str(manifest.root), image_size=SIZE),
            caption=dataclasses.replace(config.caption, engine="template"),
            align=AlignConfig(images_per_class=6, epochs=8, batch_size=6, lr=0.05, augment="flip"),
            eval=dataclasses.replace(
                config.eval, groups=dataclasses.replace(config.eval.groups, many_classes=1, few_classes=1)
            ),
        )
        run = RunFolder(tmp_path / "run")
        caption(config, run, Session())
        torch.manual_seed(0)
        model = build_model(config.model, 3)
        run.stage("federate").mkdir(parents=True)
        save_file(model.state_dict(), run.stage("federate") / "model.safetensors")
        return World(config, manifest, run)

    return make


@pytest.fixture
def world(make_world) -> World:
    return make_world()


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align, "load_teacher", lambda config, names, device: colour_teacher)


def origins(data) -> list[tuple[str, str]]:
    return [(origin.shard, origin.key) for origin in data.origins]


def test_every_class_gets_its_images_once(world: World) -> None:
    data = world.drawn()
    assert data.counts(3) == [6, 6, 6]
    assert len(set(origins(data))) == 18
    assert data.images.shape == (18, SIZE, SIZE, 3) and data.images.dtype == np.uint8


def test_the_teachers_labels_are_its_most_likely_class(world: World) -> None:
    data = world.drawn(labels="teacher")
    torch.testing.assert_close(data.teacher_logits, colour_teacher(torch.from_numpy(data.images)))
    assert data.labels.tolist() == data.teacher_logits.argmax(1).tolist()


def test_the_keyword_labels_even_where_the_teacher_sees_another_class(world: World) -> None:
    data = world.drawn(labels="keyword", images_per_class=12)
    assert data.labels.tolist() == [origin.keyword for origin in data.origins]
    assert data.counts(3) == [12, 12, 12]
    assert data.labels.tolist() != data.teacher_logits.argmax(1).tolist()


def test_agreement_is_the_share_of_keywords_that_the_teacher_confirms(world: World) -> None:
    """9 of each colour's 12 have the right keyword; `sunset` and `meadow` name no class and do not count."""
    assert world.drawn(labels="keyword", images_per_class=12).agreement == pytest.approx(0.75)
    assert world.drawn(labels="teacher", images_per_class=13).agreement == pytest.approx(0.75)


def test_drawing_stops_when_every_class_is_full(world: World) -> None:
    assert world.drawn(images_per_class=1, batch_size=4).scanned <= 12
    assert world.drawn(images_per_class=1, labels="keyword").scanned == 3
    assert world.drawn(images_per_class=13).scanned == len(POOL)


def test_the_order_is_the_seeds(world: World) -> None:
    assert origins(world.drawn()) == origins(world.drawn())
    assert origins(world.drawn()) != origins(world.drawn(seed=8))


def test_a_batch_size_does_not_change_what_is_drawn(world: World) -> None:
    assert origins(world.drawn(batch_size=5)) == origins(world.drawn(batch_size=64))


@pytest.mark.parametrize("labels", ["teacher", "keyword"])
def test_a_class_without_an_image_is_named_with_the_remedy(make_world, labels: str) -> None:
    world = make_world([row for row in POOL if row[0] != 2 and row[1] not in ("dark_blue", "Dark Blue")])
    other = {"teacher": "keyword", "keyword": "teacher"}[labels]
    with pytest.raises(UserError, match=f"no image of class dark_blue.*align.labels={other}.*open_pool.reserve"):
        world.drawn(labels=labels)


def test_undecodable_images_are_counted_and_replaced(make_world) -> None:
    """Captions were made elsewhere: the template engine refuses them itself, so they are marked `ok` by hand."""
    world = make_world(POOL[:18])
    folder = world.run.stage("caption")
    for info in world.manifest.shards("pool"):
        _break_first(world.manifest, info, folder)
    data = world.drawn(images_per_class=6)
    assert data.unreadable == 2
    assert sum(data.counts(3)) == 16


def _break_first(manifest: Manifest, info: ShardInfo, folder: Path) -> None:
    """Replace the first image of a shard by rubbish without touching anybody's records."""
    from fedscale.data.shards import read_shard

    samples = list(read_shard(manifest.path(info)))
    write_shard(manifest.path(info), [dataclasses.replace(samples[0], image=b"rubbish"), *samples[1:]])


def test_captions_of_other_shards_are_refused(world: World) -> None:
    info = world.manifest.shards("pool")[0]
    write_shard(world.manifest.path(info), [Sample("99999999", picture(0, 1), "png", keyword="red")])
    with pytest.raises(UserError, match=r"image 99999999 has .* captions; run `fedscale caption` again"):
        world.drawn(images_per_class=13)


def test_a_signal_while_drawing_stops(world: World) -> None:
    session = Session()
    session.stop.set()
    with pytest.raises(Stopped, match="drawing"):
        world.drawn(session)


def test_the_stage_aligns_the_model_and_leaves_its_files(world: World, teacher: None) -> None:
    summary = align.run(world.config, world.run, Session())
    folder = world.run.stage("align")
    evaluation = files.read_json(folder / "evaluation.json")
    assert evaluation["split"] == "test" and evaluation["train_counts"] == [4, 4, 4]
    assert summary["all"] == evaluation["all"] > summary["before"]["all"] + 20  # colours are easy; before is chance
    assert load_file(folder / "model.safetensors").keys() == build_model(world.config.model, 3).state_dict().keys()
    rows = files.read_jsonl(folder / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert rows[-1]["loss"] < rows[0]["loss"] and rows[-1]["kl"] < rows[0]["kl"]
    assert rows[0]["loss"] == pytest.approx(rows[0]["ce"] + 9 * rows[0]["kl"], rel=1e-4)  # β = 1, T = 3


def test_the_recorded_set_tells_where_each_image_and_label_is_from(world: World, teacher: None) -> None:
    summary = align.run(world.config, world.run, Session())
    recorded = json.loads((world.run.stage("align") / "alignment_set.json").read_text())
    assert recorded["agreement"] == summary["agreement"]
    assert recorded["counts"] == {"red": 6, "green": 6, "dark_blue": 6}
    assert {row["label"] for row in recorded["images"]} == set(COLOURS)
    assert all(row["label"] == row["teacher"] for row in recorded["images"])
    logits = load_file(world.run.stage("align") / "teacher.safetensors")["logits"]
    assert [COLOURS[c] for c in logits.argmax(1)] == [row["teacher"] for row in recorded["images"]]


def test_the_same_seed_gives_the_same_bytes(world: World, teacher: None) -> None:
    def model_bytes() -> bytes:
        align.run(world.config, world.run, Session())
        return (world.run.stage("align") / "model.safetensors").read_bytes()

    first = model_bytes()
    assert model_bytes() == first
    world.config = dataclasses.replace(world.config, seed=8)
    assert model_bytes() != first


def test_a_class_with_too_few_images_is_reported_and_repeated(world: World, teacher: None) -> None:
    reporter = SilentReporter()
    summary = align.run(world.with_align(images_per_class=13, epochs=1), world.run, Session(reporter))
    assert summary["images"] == 38
    assert any("1 classes have fewer than 13 images" in line and "dark_blue 12" in line for line in reporter.lines)


def test_a_signal_while_training_stops_and_the_stage_can_be_repeated(world: World, teacher: None) -> None:
    class StopsLate(Session):
        asked = 0

        @property
        def stop_requested(self) -> bool:
            self.asked += 1
            return self.asked > 30  # 18 images are drawn first, then every step asks once

    with pytest.raises(Stopped, match="epoch 5 of 8"):
        align.run(world.config, world.run, StopsLate())
    assert not (world.run.stage("align") / "model.safetensors").exists()
    align.run(world.config, world.run, Session())
    assert len(files.read_jsonl(world.run.stage("align") / "metrics.jsonl")) == 8


def test_a_loss_that_is_not_finite_is_the_users_learning_rate(world: World, teacher: None) -> None:
    with pytest.raises(UserError, match=r"the loss is (nan|inf) in epoch \d; lower align.lr=1e\+20"):
        align.run(world.with_align(lr=1e20), world.run, Session())


def test_a_missing_federated_model_names_the_stage_to_run(world: World, teacher: None) -> None:
    (world.run.stage("federate") / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: no such file; run `fedscale federate`"):
        align.run(world.config, world.run, Session())


def test_a_federated_model_of_another_width_is_refused(world: World, teacher: None) -> None:
    config = dataclasses.replace(world.config, model=ModelConfig(width=8))
    with pytest.raises(UserError, match=r"not the weights of model\.name=resnet8, model\.width=8, 3 classes"):
        align.run(config, world.run, Session())


def test_a_pool_without_captions_names_the_stage_to_run(world: World, teacher: None) -> None:
    for path in world.run.stage("caption").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"not captioned.*; run `fedscale caption`"):
        align.run(world.config, world.run, Session())
