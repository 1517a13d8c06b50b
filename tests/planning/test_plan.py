"""Plans: the command, what must grow and shrink with what, what does not fit, and what is a mistake."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fedscale.cli import app
from fedscale.config import load_config, overlaid
from fedscale.config.schema import Config
from fedscale.planning.cluster import Cluster
from fedscale.planning.counts import counts_of
from fedscale.planning.hardware import Hardware, hardware
from fedscale.planning.plan import Plan, plan, stage_works
from fedscale.planning.predict import predict, total_seconds
from fedscale.planning.rates import Rates
from fedscale.planning.work import KINDS, StageWork, Work


def planned(config: Config, nodes: int = 1, gpu: str = "h200", **more: Any) -> Plan:
    return plan(config, Cluster(hardware(gpu), nodes, 8), Rates(gpu), **more)


def seconds(made: Plan, stage: str) -> float:
    return next(row.prediction.seconds for row in made.rows if row.stage == stage)


def asked(*words: str) -> Result:
    return CliRunner().invoke(app, ["plan", *words])


@pytest.fixture(scope="module")
def federated(demo: Config) -> Config:
    overlay = {"pretrain": {"enabled": False}, "align": {"enabled": False}, "federate": {"backend": "loop", "lanes": 0}}
    return overlaid(demo, overlay)


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    found = asked("configs/imagenet_lt.yaml", "--nodes", "4", "--gpu", "h200", "--json")
    assert found.exit_code == 0, found.output
    result: dict[str, Any] = json.loads(found.output)
    return result


def test_imagenet_lt_is_planned_without_data_or_weights(shown: dict[str, Any]) -> None:
    stages = {row["stage"]: row for row in shown["stages"]}
    assert set(stages) == {
        "caption", "pretrain", "federate", "evaluation of federate", "align", "evaluation of align"
    }  # fmt: skip
    assert {name: row["runs"] for name, row in stages.items() if "evaluation" not in name} == {
        "caption": 1, "pretrain": 1, "federate": 2, "align": 2
    }, "what variants share is worked on once"  # fmt: skip
    for row in stages.values():
        assert row["seconds"] > 0 and row["memory_bytes"] > 0 and row["limit"] and row["storage"], row["stage"]
        assert row["fits"] and {term["basis"] for term in row["terms"]} == {"data sheet"}
    # ResNet-50 on 8 clients of 5,792 images, 10 epochs, 200 rounds, forward and backward.
    assert stages["federate"]["total"]["flops"] == pytest.approx(200 * 8 * 5792.3 * 10 * 3 * 2 * 4.06e9, rel=0.02)
    assert shown["seconds"] == pytest.approx(sum(row["runs"] * row["seconds"] for row in shown["stages"]))


def test_what_stops_or_slows_a_run_is_said_with_its_remedy(shown: dict[str, Any]) -> None:
    stages = {row["stage"]: row for row in shown["stages"]}
    assert stages["federate"]["limit"] == "idle ranks" and stages["federate"]["idle"] == pytest.approx(0.75, abs=0.01)
    assert "raise federate.clients_per_round" in stages["federate"]["remedy"]
    assert stages["caption"]["idle"] == pytest.approx(1 - 20 / 32)
    assert any("pretrain.streams=32" in line for line in stages["pretrain"]["obstacles"])


def test_the_remedies_work(shown: dict[str, Any]) -> None:
    words = [
        "pretrain.streams=32",
        "pretrain.workers=1",
        "data.partition.clients=640",
        "federate.clients_per_round=256",
    ]
    better = asked("configs/imagenet_lt.yaml", *words, "--nodes", "4", "--json")
    stages = {row["stage"]: row for row in json.loads(better.output)["stages"]}
    assert stages["pretrain"]["obstacles"] == [] and stages["federate"]["limit"] == "compute"


def test_the_table_says_what_each_number_rests_on() -> None:
    found = asked("configs/demo.yaml", "--gpu", "cpu", "--ranks", "2", "--terms")
    assert found.exit_code == 0, found.output
    for word in ("federate", "limited by", "data sheet ×", "assumed", "no measured rate at all", "memory/GPU"):
        assert word in found.output
    assert "data sheet ×" not in asked("configs/demo.yaml", "--gpu", "cpu", "--ranks", "2").output, "only when asked"


def test_a_round_of_more_clients_takes_longer_and_more_nodes_take_less(federated: Config) -> None:
    many = overlaid(federated, {"data": {"partition": {"clients": 256}}, "federate": {"clients_per_round": 64}})
    more = overlaid(many, {"federate": {"clients_per_round": 128}})
    assert seconds(planned(more, images=10**6), "federate") > 1.5 * seconds(planned(many, images=10**6), "federate")
    one, two, four = (seconds(planned(more, nodes, images=10**7), "federate") for nodes in (1, 2, 4))
    assert one > two > four > one / 4.5


def test_a_cpu_is_advised_to_take_a_gpu_and_no_more_gpus(federated: Config) -> None:
    made = plan(federated, Cluster(hardware("cpu", 2), 1, 1), Rates("cpu"))
    told = {row.stage: row.prediction for row in made.rows}
    assert told["federate"].limit == "compute" and "--gpu" in told["federate"].remedy
    assert not any("more GPUs" in prediction.remedy for prediction in told.values())


def test_more_nodes_than_groups_of_clients_help_nothing(federated: Config) -> None:
    one, eight = (seconds(planned(federated, nodes), "federate") for nodes in (1, 8))
    assert eight >= one, "8 clients a round: one node has a GPU for each, more nodes only have to talk"


def test_a_faster_gpu_and_a_lower_precision_are_faster(federated: Config) -> None:
    large = overlaid(federated, {"model": {"name": "resnet50"}, "data": {"image_size": 224}})
    v100, h100, b200 = (seconds(planned(large, gpu=gpu), "federate") for gpu in ("v100", "h100", "b200"))
    assert v100 > h100 > b200
    tf32 = overlaid(large, {"federate": {"precision": "tf32"}})
    assert seconds(planned(tf32), "federate") < seconds(planned(large), "federate")


def test_ranks_that_share_the_cores_of_a_cpu_are_no_faster_than_their_number(federated: Config) -> None:
    cores, counts = hardware("cpu", 2), counts_of(federated)
    steps = {}
    for ranks in (1, 2, 4):
        works = stage_works(federated, Cluster(cores, 1, ranks), counts, ["federate"])
        steps[ranks] = works["federate"].work["conv.fp32"]
    assert steps[2] == pytest.approx(steps[1] / 2, rel=0.1)
    assert steps[2] <= steps[4] < 1.2 * steps[2], "four ranks on two cores do the work of two, and wait for the last"


def test_cutting_the_state_saves_memory_and_costs_network(demo: Config) -> None:
    config = overlaid(demo, {"pretrain": {"language_model": "full", "streams": 8, "batch_size": 64}})
    cluster, counts = Cluster(hardware("h200"), 1, 8), counts_of(config)
    held, sent = {}, {}
    for name in ("ddp", "zero1", "zero2", "zero3"):
        launch = overlaid(config, {"launch": f"launch/accelerate/{name}.yaml"})
        work = stage_works(launch, cluster, counts, ["pretrain"])["pretrain"]
        held[name], sent[name] = work.memory["trained"], work.work["link"]
    assert held["ddp"] > held["zero1"] > held["zero2"] > held["zero3"] == pytest.approx(held["ddp"] / 8)
    assert sent["ddp"] == sent["zero1"] == sent["zero2"] < sent["zero3"]


def test_a_language_model_that_no_device_holds_whole_is_for_fsdp2_not_for_zero3() -> None:
    config = load_config(["configs/imagenet_lt.yaml", "variant=pretrain", "pretrain.language_model=full"])
    counts, cluster = counts_of(config), Cluster(dataclasses.replace(hardware("v100"), memory=16), 2, 8)
    told = {}
    for name in ("fsdp2", "zero3"):
        launch = overlaid(config, {"launch": f"launch/accelerate/{name}.yaml"})
        told[name] = stage_works(launch, cluster, counts, ["pretrain"])["pretrain"]
    whole = f"{4 * 6.74e9 / 2**30:.1f} GiB"
    assert not any("language model" in line for line in told["fsdp2"].obstacles)
    assert any(f"holds {whole} of the host's memory" in note for note in told["fsdp2"].notes)
    (line,) = [line for line in told["zero3"].obstacles if "language model" in line]
    assert f"whole language model ({whole}) on each device" in line and "fsdp2.yaml" in line
    assert not any("host's memory for the language" in note for note in told["zero3"].notes)


def test_sharding_a_client_divides_its_lane(federated: Config) -> None:
    cluster, counts = Cluster(hardware("h200"), 1, 8), counts_of(federated)
    whole = stage_works(federated, cluster, counts, ["federate"])["federate"]
    cut = stage_works(overlaid(federated, {"federate": {"shard": 2}}), cluster, counts, ["federate"])["federate"]
    assert cut.memory["lanes"] == whole.memory["lanes"] / 2 and cut.work["link"] > whole.work["link"]


def test_shorter_answers_take_less_time_and_smaller_shards_keep_all_workers_busy() -> None:
    config = load_config(["configs/imagenet_lt.yaml", "variant=pretrain"])
    long, short = (seconds(planned(config, answer_tokens=n), "caption") for n in (256, 64))
    assert long > 3 * short
    finer = overlaid(config, {"data": {"samples_per_shard": 500}})
    assert seconds(planned(finer, 4), "caption") < 0.8 * seconds(planned(config, 4), "caption")


def test_memory_for_shuffling_is_told_where_it_is_much() -> None:
    config = load_config(["configs/imagenet_lt.yaml", "variant=pretrain", "pretrain.streams=32"])
    large = overlaid(config, {"pretrain": {"shuffle_buffer": 20_000}})  # more than a stream has: the pool of 100,000
    told = [
        [note for row in made.rows for note in row.prediction.stage.notes if "pairs that it shuffles" in note]
        for made in (planned(config), planned(large), planned(large, 4))
    ]
    assert [len(notes) for notes in told] == [0, 1, 0], "8 ranks share four times as many bytes as 32"
    size = 100_000 / 8 * (115_440 + 1536) / 2**30
    assert f"holds {size:.1f} GiB of the host's memory" in told[1][0]


def test_what_does_not_fit_is_named_with_what_would() -> None:
    found = asked("configs/imagenet_lt.yaml", "variant=fedavg", "--gpu", "v100", "federate.batch_size=1024")
    assert found.exit_code == 0
    line = next(line for line in found.output.splitlines() if "does not fit" in line)
    assert "activations" in line and "federate.shard=2" in line
    smaller = asked("configs/imagenet_lt.yaml", "variant=fedavg", "--gpu", "v100", "--json")
    assert all(row["fits"] for row in json.loads(smaller.output)["stages"])


def test_an_endpoints_time_is_not_made_up(demo: Config) -> None:
    made = planned(overlaid(demo, {"caption": {"engine": "openai"}}))
    assert made.seconds is None
    assert "?" in asked("configs/demo.yaml", "caption.engine=openai").output


def test_reading_beside_the_device_is_hidden_on_a_gpu_and_not_on_a_cpu() -> None:
    work = Work({"conv.fp32": 10.0, "image": 4.0, "call": 1.0})
    rates = dict.fromkeys(KINDS, 1.0)
    assert total_seconds(work, hardware("h200"), rates) == (14.0, 1.0), "launches alone"
    assert total_seconds(work, hardware("h200"), rates, workers=1) == (10.0, 5.0)
    assert total_seconds(work, hardware("cpu"), rates, workers=1) == (15.0, 0.0)


def test_waiting_ranks_are_the_limit_only_where_they_wait_much() -> None:
    node, rates = hardware("h200"), dict.fromkeys(KINDS, 1.0)

    def limit(idle: float, node: Hardware = node, memory: float = 0.0) -> str:
        stage = StageWork("federate", Work({"wire": 2.0, "call": 1.0}), 8, idle, "fewer", memory={"all": memory})
        return predict(stage, node, rates, dict.fromkeys(KINDS, "")).limit

    assert (limit(0.1), limit(0.5)) == ("network", "idle ranks")
    assert limit(0.5, memory=node.usable + 1) == "memory"
    assert limit(0.1, dataclasses.replace(node, memory=1.0), 2.0**29) == "memory"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["configs/demo.yaml", "--gpu", "h20"], "--gpu h20: expected one of"),
        (["configs/demo.yaml", "--nodes", "0"], "--nodes=0: expected 1 or more"),
        (["configs/demo.yaml", "--gpu", "cpu", "--gpus", "4"], "--gpus: says nothing with --gpu cpu; expected --ranks"),
        (["configs/demo.yaml", "--ranks", "4"], "--ranks: says nothing with --gpu h200; expected --gpus"),
        (["configs/demo.yaml", "--images", "-1"], "expected 0 or more"),
        (["configs/demo.yaml", "--images", "3"], "fewer than data.partition.clients=10"),
        (["configs/demo.yaml", "--rates", "nowhere.json"], "no such file"),
        (["configs/demo.yaml", "--fit", "nowhere"], "no finished stage"),
        (["configs/demo.yaml", "teachers.clip.model=hf-hub:some/model"], "its shape is not known here"),
        (["configs/demo.yaml", "data.format=folder", "data.source=x"], "give --images"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = asked(*words)
    assert found.exit_code == 2, found.output
    assert told in found.stderr and found.stderr.count("\n") == 1


def test_runs_are_read_back_and_their_rates_planned_with(tmp_path: Path, federated: Config) -> None:
    from fedscale import api

    out = tmp_path / "runs"
    small = {
        "out": str(out),
        "jobs": 1,
        "threads": 1,
        "federate": {"rounds": 1, "local_epochs": 1},
        "model": {"width": 2},
    }
    api.stage(overlaid(federated, small), "federate")
    rates = tmp_path / "rates.json"
    words = ["configs/demo.yaml", "variant=fedavg", "seeds=[1]", "--gpu", "cpu", "--rates", str(rates), "--json"]
    written = asked(*words, "--fit", str(out / "demo"))
    assert written.exit_code == 0, written.output
    saved = json.loads(rates.read_text())
    assert saved["runs"] == {"federate": 1} and saved["gpu"] == "cpu"
    rows = {row["stage"]: row for row in json.loads(asked(*words).output)["stages"]}
    assert {term["basis"] for term in rows["federate"]["terms"]} <= {"measured", "data sheet"}
    assert rows["federate"]["terms"][0]["basis"] == "measured"
    assert asked("configs/demo.yaml", "--rates", str(rates)).exit_code == 2, "of a CPU, for an h200"
