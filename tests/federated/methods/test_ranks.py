"""What methods keep beside the model is the same for any number of ranks: to the last bit, or cut over a shard row."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.federated.engine_support import trained
from tests.federated.methods.support import engine_on, pool_of
from tests.ranks import ranks

pytestmark = pytest.mark.slow

EXACT = {"backend": "batched", "lanes": 2, "aggregate": {"exact": True}}
# The survey before round 1, vectors of server and clients, weights by steps, whole models kept, the server's training.
METHODS = ("logit_adjustment", "feddyn", "fednova", "moon", "ratio_loss")
SHARDED = ("logit_adjustment", "balanced_softmax", "fedrs", "feddyn")
RANK = """
import sys
import torch
from pathlib import Path
from safetensors.torch import save_file
from fedscale.distributed.mesh import open_mesh
from tests.federated.engine_support import trained
from tests.federated.methods.support import engine_on, pool_of
from tests.federated.methods.test_ranks import EXACT

folder, shard, *methods = sys.argv[1:]
torch.set_num_threads(1)
options = EXACT if shard == "1" else {"shard": int(shard), "momentum": 0.5}
with open_mesh(torch.device("cpu"), int(shard), 240, print) as mesh:
    for method in methods:
        engine = engine_on(mesh, Path(folder) / method, pool_of(), method=method, **options)
        whole = trained(engine)
        if mesh.is_main:
            save_file({"vector": whole, **engine.server.shared}, Path(folder) / f"{method}.safetensors")
"""


def alone(method: str, folder: Path, **options: object) -> dict[str, torch.Tensor]:
    engine = engine_on(None, folder / "alone" / method, pool_of(), method=method, **options)
    return {"vector": trained(engine), **engine.server.shared}


def on_ranks(count: int, shard: int, methods: tuple[str, ...], folder: Path) -> None:
    script = folder / "rank.py"
    script.write_text(RANK)
    done = ranks(count, script, str(folder), str(shard), *methods)
    assert done.returncode == 0, done.stderr[-5000:]


def test_two_ranks_give_the_bits_of_one(tmp_path: Path) -> None:
    on_ranks(2, 1, METHODS, tmp_path)
    for method in METHODS:
        found = load_file(tmp_path / f"{method}.safetensors")
        for name, tensor in alone(method, tmp_path, **EXACT).items():
            assert torch.equal(found[name], tensor), (method, name)


def test_clients_cut_over_two_ranks_train_as_whole_ones(tmp_path: Path) -> None:
    on_ranks(2, 2, SHARDED, tmp_path)
    for method in SHARDED:
        found = load_file(tmp_path / f"{method}.safetensors")
        for name, tensor in alone(method, tmp_path, momentum=0.5).items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=f"{method} {name}")
