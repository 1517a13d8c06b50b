"""On a GPU in name alone every tensor is where it should be, and results are the CPU's."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedscale.config.methods import BUILT_IN
from fedscale.files import read_jsonl
from tests.launching import torchrun

HERE = Path(__file__).parent
SMALL = [
    "threads=1", "jobs=1", "seeds=[1]", "model.width=4", "caption.kinds=[description]",
    "teachers.mllm.dtype=float32", "federate.lr=0.01", "align.lr=0.001",
    "pretrain.epochs=1", "pretrain.batch_size=8", "pretrain.probe.steps=2", "federate.rounds=2",
    "federate.clients_per_round=4", "federate.local_epochs=1", "federate.backend=batched", "federate.lanes=4",
    "data.partition.clients=4", "align.images_per_class=2", "align.epochs=1", "data.open_pool.validation=2",
    "data.samples_per_shard=40", "data.imbalance_factor=4", "data.open_pool.reserve=6",
    "data.shapes.train_per_class=20", "data.shapes.test_per_class=2",
]  # fmt: skip

RULES = """
import torch
from tests.imagined.gpu import GPU, captured, imagined

def refused(work):
    try:
        work()
    except RuntimeError:
        return True
    return False

here, rows = torch.ones(2, 3), torch.tensor([0, 1])
with imagined():
    there = here.to(GPU)
    assert there.device == GPU and there.cpu().device.type == "cpu" and torch.zeros(2, device=GPU).device == GPU
    assert refused(lambda: there + here) and refused(lambda: torch.bmm(there[None], here.T[None]))
    assert refused(lambda: torch.nn.functional.linear(there, here))
    assert not refused(lambda: there[rows] + 2.0) and not refused(lambda: here.copy_(there))
    assert there.sum().item() == 6 and there.tolist() == here.tolist()
    with captured("a step"):
        assert not refused(lambda: there + 1)
        for work in (there.sum().item, there.tolist, there.cpu, there.nonzero, lambda: there[there > 0]):
            assert refused(work), work
        assert refused(lambda: there[rows]) and refused(lambda: there.copy_(here)) and refused(lambda: here.to(GPU))
print("fine")
"""


def run(ranks: int, script: Path | str, *words: object) -> str:
    """What a script says; an error where it ends with one."""
    done = torchrun(ranks, script, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_imagined_gpu_refuses_what_a_real_one_would():
    assert run(1, "-c", RULES) == "fine\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "backend"), [(1, "loop"), (1, "batched"), (1, "mapped"), (1, "graph"), (2, "batched")]
)
def test_every_methods_rounds_are_one_cpus_and_their_steps_could_be_captured(tmp_path, ranks, backend):
    found = json.loads(run(ranks, HERE / "rounds.py", tmp_path, backend).splitlines()[-1])
    assert set(found) == set(BUILT_IN)
    assert {method: difference for method, difference in found.items() if not difference < 1e-9} == {}


@pytest.mark.slow
def test_all_stages_do_what_they_do_on_the_cpu(tmp_path):
    captions, models, losses = {}, {}, {}
    for device, script in (("gpu", [HERE / "stages.py"]), ("cpu", ["-m", "fedscale"])):
        words = [*SMALL, f"out={tmp_path / device}", f"data.dir={tmp_path / 'shapes'}"]
        words += ["device=cpu"] if device == "cpu" else []
        run(1, *script, "run", "configs/demo.yaml", "variant=align", *words)
        for stage in ("caption", "pretrain"):
            run(1, *script, stage, "configs/demo.yaml", "variant=full", *words)
        runs = tmp_path / device / "demo"
        captions[device] = [path.read_text() for path in sorted((runs / "align-s1" / "caption").glob("0*.jsonl"))]
        stages = ("federate", "align")
        models[device] = {stage: load_file(runs / "align-s1" / stage / "model.safetensors") for stage in stages}
        losses[device] = [row["loss"] for row in read_jsonl(runs / "full-s1" / "pretrain" / "metrics.jsonl")]
    assert captions["gpu"] == captions["cpu"] != []
    # Sums are rounded otherwise there, which Adam and batch norm amplify from step to step.
    assert losses["gpu"][:3] == pytest.approx(losses["cpu"][:3], rel=1e-4) and len(losses["gpu"]) > 3
    for stage, model in models["gpu"].items():
        for name, tensor in model.items():
            torch.testing.assert_close(tensor, models["cpu"][stage][name], rtol=0, atol=1e-4, msg=f"{stage}: {name}")
