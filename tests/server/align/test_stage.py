"""Stage 3 on three colours: which images are drawn, how they are labelled, what the stage leaves behind."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedscale import files
from fedscale.config.schema import ModelConfig
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.shards import Sample, write_shard
from fedscale.errors import Stopped, UserError
from fedscale.models import build_model
from fedscale.progress import SilentReporter
from fedscale.server.align import draw
from fedscale.server.align import stage as align
from fedscale.server.align.cache import alignment_set
from fedscale.server.caption.join import joined
from fedscale.session import Session
from tests.server.align.support import COLOURS, POOL, SIZE, World, colour_teacher, picture


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


def test_a_signal_stops_though_the_classes_are_full_that_the_rest_of_the_pool_shows(make_world) -> None:
    """The images scored for a rare class's sake are handed to nobody: the stop is looked at where they are scored."""
    world, session, asked = make_world([(0, "red", None)] * 30), Session(), []

    def teacher(images: torch.Tensor) -> torch.Tensor:
        asked.append(len(images))
        if len(asked) == 3:  # the first batch filled the class
            session.stop.set()
        return colour_teacher(images)

    with pytest.raises(Stopped, match="drawing"):
        world.drawn(session, teacher=teacher, images_per_class=2, batch_size=4)
    assert asked == [4, 4, 4]


def test_a_signal_stops_though_no_keyword_of_the_next_shards_is_wanted(world: World, monkeypatch) -> None:
    session, opened = Session(), []

    def reading(*args):
        session.stop.set()
        opened.append(args)
        return joined(*args)

    monkeypatch.setattr(draw, "joined", reading)
    with pytest.raises(Stopped, match="drawing"):
        world.drawn(session, labels="keyword", images_per_class=12, batch_size=64)
    assert len(opened) == 1


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
            return self.asked > 12  # every step asks once, three an epoch

    alignment_set(world.config, world.manifest, world.run, torch.device("cpu"), Session())
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
    with pytest.raises(UserError, match=r"not the weights of model\.name=resnet8, model\.width=8, .*3 classes"):
        align.run(config, world.run, Session())


def test_a_pool_without_captions_names_the_stage_to_run(world: World, teacher: None) -> None:
    for path in world.run.stage("caption").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"not captioned.*; run `fedscale caption`"):
        align.run(world.config, world.run, Session())


def test_without_kl_and_with_the_keywords_labels_no_teacher_is_asked(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control row: plain cross-entropy, the same as with a teacher whose KL has no weight."""
    world = dataclasses.replace(world, config=world.with_align(labels="keyword", beta=0.0))
    summary = align.run(world.config, world.run, Session())
    untaught = load_file(world.run.stage("align") / "model.safetensors")
    rows = files.read_jsonl(world.run.stage("align") / "metrics.jsonl")
    assert all(row["kl"] == 0 and row["loss"] == row["ce"] > 0 for row in rows)
    assert summary["agreement"] is None and summary["all"] > summary["before"]["all"]
    recorded = files.read_json(world.run.stage("align") / "alignment_set.json")
    assert recorded["teacher"] is None and {image["teacher"] for image in recorded["images"]} == {None}
    assert not (world.run.stage("align") / "teacher.safetensors").exists()
    data = world.drawn()
    monkeypatch.setattr(align, "alignment_set", lambda *_: data)
    align.run(world.config, world.run, Session())
    for name, tensor in load_file(world.run.stage("align") / "model.safetensors").items():
        assert torch.allclose(tensor, untaught[name], atol=1e-5), name
