"""A client's model cut over ranks gives what one rank gives, and a rank holds half of it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.federated.engine_support import make_engine, settings, trained
from tests.ranks import ranks

pytestmark = pytest.mark.slow

RANK = """
import sys
import torch
from safetensors.torch import save_file
from pathlib import Path
from fedscale.distributed.mesh import open_mesh
from tests.federated.engine_support import make_engine, settings, trained

model, method, folder = sys.argv[1:]
torch.set_num_threads(1)
config = settings(shard=2, method=method, momentum=0.5, weight_decay=0.01)
with open_mesh(torch.device("cpu"), 2, 60, print) as mesh:
    engine = make_engine(config, model, mesh, Path(folder) / "federate")
    whole = trained(engine)
    held = torch.tensor([engine.host.num_bytes])
    if mesh.is_main:
        save_file({"vector": whole, "held": held}, Path(folder) / "sharded.safetensors")
"""


@pytest.mark.parametrize(
    ("model", "method"), [("resnet8", "fedavg"), ("resnet8", "scaffold"), ("group_norm", "fedadam")]
)
def test_two_by_two_ranks_give_what_one_gives_and_hold_half_each(model: str, method: str, tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    done = ranks(4, script, model, method, str(tmp_path))
    assert done.returncode == 0, done.stderr[-9000:]
    found = load_file(tmp_path / "sharded.safetensors")
    engine = make_engine(settings(method=method, momentum=0.5, weight_decay=0.01), model, folder=tmp_path / "alone")
    alone = trained(engine)
    assert (found["vector"] - alone).abs().max() < 1e-6
    assert not torch.equal(alone, trained(engine, [4]))
    whole = sum(e.numel for e in engine.layout.parameters) * alone.element_size()
    assert found["held"] <= 0.55 * whole
