"""Stage 3 on two ranks, whatever the strategy, makes the model of one process."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from fedscale import files
from fedscale.config import overlaid, to_yaml
from fedscale.server.align import stage as align
from fedscale.session import Session
from tests.ranks import ranks
from tests.server.align.support import World

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
LAUNCH = {"ddp": "", "fsdp2": "launch/accelerate/fsdp2.yaml", "zero3": "launch/accelerate/zero3.yaml"}
RANK = """
import json, sys
from pathlib import Path
import torch
from fedscale.config import load_config
from fedscale.progress import SilentReporter
from fedscale.runs import RunFolder
from fedscale.server.align import run
from fedscale.session import Session

torch.set_num_threads(1)
config, folder = sys.argv[1:]
reporter = SilentReporter()
summary = run(load_config([config]), RunFolder(Path(folder)), Session(reporter))
print(json.dumps({"summary": summary is not None, "lines": reporter.lines}))
"""


def on_two_ranks(world: World, launch: str, folder: Path) -> str:
    """Run the stage; its set was drawn before, so that no rank asks the teacher."""
    config = overlaid(world.config, {"launch": str(ROOT / launch) if launch else ""})
    files.write_text(folder / "config.yaml", to_yaml(config))
    files.write_text(folder / "rank.py", RANK)
    done = ranks(2, folder / "rank.py", folder / "config.yaml", world.run.path)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(("strategy", "norm"), [("ddp", "batch"), ("fsdp2", "group"), ("zero3", "batch")])
def test_two_ranks_align_as_one_process_does(
    make_world, teacher: None, tmp_path: Path, strategy: str, norm: str
) -> None:
    world = make_world(norm=norm, epochs=2, batch_size=7, augment="flip")  # uneven parts
    folder = world.run.stage("align")
    align.run(world.config, world.run, Session())
    alone, rows = load_file(folder / "model.safetensors"), files.read_jsonl(folder / "metrics.jsonl")
    told = on_two_ranks(world, LAUNCH[strategy], tmp_path)
    assert told.count('"summary": true') == 1 and "those of" in told
    both = load_file(folder / "model.safetensors")
    assert alone.keys() == both.keys()
    for name, tensor in alone.items():
        assert (both[name].double() - tensor.double()).abs().max() < 1e-5, name
    for row, found in zip(rows, files.read_jsonl(folder / "metrics.jsonl"), strict=True):
        assert found == pytest.approx(row, abs=1e-5)


def test_a_batch_smaller_than_the_ranks_is_refused(make_world, teacher: None, tmp_path: Path) -> None:
    world = make_world(epochs=1, batch_size=1)
    align.run(world.config, world.run, Session())
    with pytest.raises(AssertionError, match=r"align\.batch_size=1: makes batches of 1, fewer than 2 processes"):
        on_two_ranks(world, "", tmp_path)
