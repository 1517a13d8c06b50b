"""Counts against what is known: published models, the ZeRO paper's table, a ring's bytes, a real run's own record."""

import math
from pathlib import Path

import numpy as np
import pytest

from fedscale.config import load_config, overlaid
from fedscale.config.schema import Config
from fedscale.data.build import ensure_shards
from fedscale.data.partition import make_partition
from fedscale.data.store import open_store
from fedscale.errors import UserError
from fedscale.planning.cluster import Cluster
from fedscale.planning.collectives import Strategy, gathered, reduced, sent_in_step, state_bytes, strategy_of
from fedscale.planning.counts import counts_of, sizes_of
from fedscale.planning.federate import rounds_of
from fedscale.planning.hardware import hardware
from fedscale.planning.shapes import student_of
from fedscale.planning.teachers import clip_of, mllm_of
from fedscale.progress import SilentReporter


@pytest.fixture(scope="module")
def imagenet() -> Config:
    return load_config(["configs/imagenet_lt.yaml"])


def test_resnet50_has_the_published_operations_and_parameters(imagenet: Config) -> None:
    student = student_of(imagenet, 1000)
    assert student.parameters == 25_557_032 + 24, "torchvision's; ours has no more than its classifier's and its norms'"
    assert sum(student.passes.forward.values()) == pytest.approx(2 * 4.09e9, rel=0.01), (
        "4.1 GMAC, a multiply-add is two"
    )
    assert 1.9 < sum(student.passes.backward.values()) / sum(student.passes.forward.values()) < 2.0
    assert student.norms == 53 and student.statistics == 2 * 26_560


def test_activations_are_at_least_the_convolutions_inputs_and_grow_with_the_pixels(demo: Config) -> None:
    small, large = (student_of(overlaid(demo, {"data": {"image_size": s}}), 10) for s in (32, 64))
    assert large.passes.saved == pytest.approx(4 * small.passes.saved, rel=0.02)
    assert small.passes.saved > 4 * (3 + 8 * 4) * 32 * 32, "the images, and what the stem and the first block put out"


def test_the_published_teachers_have_their_sizes_and_decoding_costs_two_operations_a_weight(imagenet: Config) -> None:
    clip, mllm = clip_of(imagenet), mllm_of(imagenet)
    assert clip.parameters == 151_277_313 and clip.width == 512
    assert sum(clip.image.forward.values()) == pytest.approx(2 * 4.41e9, rel=0.01), "ViT-B/32: 4.4 GMAC an image"
    assert mllm.parameters == pytest.approx(7.06e9, rel=0.002) and mllm.image_tokens == 576
    assert mllm.language.kv_bytes(2) == 2 * 32 * 4096 * 2, "0.5 MiB a token"
    language = mllm.language
    assert language.flops(1) == pytest.approx(2 * language.linear, rel=1e-3)
    # A token behind another thousand: their keys and values, two products a layer.
    assert language.flops(1, 1000) - language.flops(1) == pytest.approx(4 * 32 * 4096 * 1000)


@pytest.mark.parametrize(
    ("name", "stage", "gigabytes"), [("ddp", 0, 120.0), ("zero1", 1, 31.4), ("zero2", 2, 16.6), ("zero3", 3, 1.88)]
)
def test_a_rank_keeps_what_the_zero_paper_says(name: str, stage: int, gigabytes: float) -> None:
    # arXiv 1910.02054, figure 1: 7.5 billion parameters on 64 ranks, 2 + 2 + 12 bytes each.
    held = state_bytes(7.5e9, Strategy(name, stage), 64, weight=2, gradient=2, optimiser=12)
    assert held / 1e9 == pytest.approx(gigabytes, rel=0.005)


def test_a_ring_sends_twice_all_but_a_share_and_zero3_half_as_much_again() -> None:
    assert reduced(800, 4) == 2 * 3 / 4 * 800 and reduced(800, 1) == 0
    assert gathered(800, 4) == 600
    data_parallel = sent_in_step(Strategy("ddp"), 8, 100, 100)
    assert sent_in_step(Strategy("zero2", 2), 8, 100, 100) == data_parallel
    assert sent_in_step(Strategy("zero3", 3), 8, 100, 100) == pytest.approx(1.5 * data_parallel)


@pytest.mark.parametrize(
    ("file", "name", "stage"),
    [
        ("launch/accelerate/ddp.yaml", "ddp", 0),
        ("launch/accelerate/fsdp2.yaml", "fsdp2", 3),
        ("launch/accelerate/zero2.yaml", "zero2", 2),
        ("launch/deepspeed/zero3.json", "zero3", 3),
    ],
)
def test_the_strategy_is_the_launch_files(demo: Config, file: str, name: str, stage: int) -> None:
    assert strategy_of(overlaid(demo, {"launch": file})) == Strategy(name, stage)


def test_imagenet_lt_needs_no_images_to_be_counted(imagenet: Config) -> None:
    counts = counts_of(imagenet)
    assert (counts.train, counts.test, counts.validation) == (115_846, 50_000, 10_000)
    assert counts.train + counts.pool + counts.validation == 1_281_167
    assert counts.sizes.sum() == counts.train and len(counts.sizes) == 20
    assert not counts.exact and "published" in counts.told


def test_a_list_that_is_there_is_counted(imagenet: Config, tmp_path: Path) -> None:
    (tmp_path / "ImageNet_LT_train.txt").write_text("".join(f"train/n/{i}.JPEG {i % 1000}\n" for i in range(3000)))
    config = overlaid(imagenet, {"data": {"source": str(tmp_path)}})
    assert (counts_of(config).train, counts_of(config).told) == (3000, "the list")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the demo's shards are built once."""
    return tmp_path_factory.mktemp("built")


def test_an_unbuilt_recipe_counts_as_its_shards_do(
    tmp_path: Path, built: Path, demo: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where nothing is built
    before = counts_of(demo)
    monkeypatch.chdir(built)
    manifest = ensure_shards(demo.data, SilentReporter())
    store = open_store(manifest, "train", 32, SilentReporter(), 0.0)
    dealt = make_partition(store.labels, 10, demo.data.partition, demo.seed, keys=store.keys)
    assert before.sizes.tolist() == sizes_of(dealt.clients).tolist(), "client by client"
    after = counts_of(demo)
    for name in ("classes", "train", "pool", "validation", "test", "pool_shard"):
        assert getattr(before, name) == getattr(after, name), name
    assert after.exact and "shards" in after.told


def test_a_recipe_that_does_not_say_asks_for_the_number(demo: Config) -> None:
    unknown = overlaid(demo, {"data": {"format": "folder", "name": "mine", "source": "nowhere", "classes": 5}})
    with pytest.raises(UserError, match="give --images"):
        counts_of(unknown)
    counts = counts_of(unknown, images=1003, pool=77)
    assert (counts.train, counts.pool, sorted(set(counts.sizes.tolist()))) == (1003, 77, [100, 101])
    with pytest.raises(UserError, match=r"data\.classes"):
        counts_of(overlaid(unknown, {"data": {"classes": None}}), images=10)


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "creff"])
def test_client_bytes_and_operations_are_those_that_a_run_records(
    tmp_path: Path, built: Path, demo: Config, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedscale import api, files
    from fedscale.runs import RunFolder

    monkeypatch.chdir(built)
    federate = {"method": method, "rounds": 1, "local_epochs": 1, "backend": "loop", "lanes": 0, "momentum": 0.0}
    config = overlaid(
        demo,
        {
            "out": str(tmp_path / "runs"), "pretrain": {"enabled": False}, "align": {"enabled": False},
            "federate": federate, "model": {"width": 2}, "jobs": 1, "threads": 1,
        },
    )  # fmt: skip
    api.stage(config, "federate")
    told = files.read_json(RunFolder.of(config).stage("federate") / "done.json")
    counts = counts_of(config)
    cost = rounds_of(config, counts, student_of(config, 10), Cluster(hardware("cpu"))).cost
    assert told["ranks"] == 1
    assert {name: getattr(cost, name) for name in told["cost"]} == pytest.approx(told["cost"], rel=1e-12)


def test_a_round_sums_one_vector_over_all_ranks(demo: Config, four_nodes: Cluster) -> None:
    from fedscale.planning.federate import federate_work

    config = overlaid(demo, {"federate": {"rounds": 1, "backend": "loop", "lanes": 0}})
    counts = counts_of(config)
    student = student_of(config, 10)
    work = federate_work(config, counts, student, four_nodes).work
    numbers = student.parameters + student.statistics + 2 * 8 + 2 * 32  # the record: clients, ranks
    assert work["wire"] == 2 * 31 / 32 * 8 * numbers, "float64"
    assert federate_work(config, counts, student, Cluster(hardware("h200"))).work["wire"] == 0


def test_exact_counting_of_steps_agrees_with_the_engines(demo: Config) -> None:
    config = overlaid(demo, {"federate": {"clients_per_round": 10, "rounds": 3, "backend": "loop", "lanes": 0}})
    counts = counts_of(config)
    share = rounds_of(config, counts, student_of(config, 10), Cluster(hardware("h200"))).share
    settings = config.federate
    assert share.steps == settings.local_epochs * sum(math.ceil(n / settings.batch_size) for n in counts.sizes.tolist())
    assert share.busiest == share.steps and np.isclose(share.calls, share.steps)
