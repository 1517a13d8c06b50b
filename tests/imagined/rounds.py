"""Two rounds of every method on the imagined GPU and on the CPU; prints, as JSON, by how much they differ.

`rounds.py FOLDER BACKEND`: `loop` and `batched`, whose steps run as while they are captured; `mapped`, with images that
are staged group by group; `graph`, whose steps are captured and replayed. By torchrun: on ranks with a GPU each, which
NCCL joins.
"""

import copy
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.imagined.gpu import GPU, captured, imagined, nccl_groups, take_over
from tests.imagined.graphs import Graph, take_over_graphs

take_over()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from fedscale.config import overlaid  # noqa: E402
from fedscale.config.methods import BUILT_IN  # noqa: E402
from fedscale.distributed.mesh import Mesh, open_mesh, rows_of  # noqa: E402
from fedscale.evaluation import evaluate  # noqa: E402
from fedscale.federated.backends import LaneTrainer  # noqa: E402
from fedscale.federated.pool import Pool  # noqa: E402
from tests.federated.engine_support import make_engine, settings, trained  # noqa: E402
from tests.federated.methods.support import pool_of  # noqa: E402

IMAGES = np.random.default_rng(1).integers(0, 256, (21, 12, 12, 3), dtype=np.uint8)
LABELS = np.random.default_rng(2).integers(0, 3, 21)
step = LaneTrainer.compute


def compute(self: LaneTrainer, *args: object) -> torch.Tensor:
    with captured("a client's step"):
        return step(self, *args)  # type: ignore[arg-type]


def after_two_rounds(method: str, backend: str, mesh: Mesh, folder: Path) -> list[float]:
    """The judged global model, and the accuracies of its classes."""
    resident = backend != "mapped"
    if backend == "mapped" or (backend == "graph" and mesh.device != GPU):
        backend = "batched"
    words = {"backend": backend, "lanes": 0 if backend == "loop" else 3, "momentum": 0.5, "weight_decay": 0.01}
    config = overlaid(settings(method=method, **words), {"eval": {"groups": {"many_classes": 1, "few_classes": 1}}})
    engine = make_engine(config, "small", mesh, folder, resident=resident)
    pool = pool_of()
    engine.central.pool = Pool(pool.images.to(mesh.device), pool.labels.to(mesh.device))
    engine.survey("start", 0)
    trained(engine, (1, 2))
    engine.survey("end", 2)
    engine.central.load_judged()
    part, names = rows_of(len(LABELS), mesh.client_index, mesh.clients), ["a", "b", "c"]
    store = SimpleNamespace(images=IMAGES, labels=LABELS, split="test")
    model = copy.deepcopy(engine.host.model).float()
    judged = evaluate(model, store, names, [3, 2, 1], config, part, mesh.sum_over_clients)  # type: ignore[arg-type]
    return [*engine.judged().cpu().tolist(), *judged.per_class]


def main() -> None:
    folder, backend = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    ranks, rank = int(os.environ.get("WORLD_SIZE", 1)), os.environ.get("RANK", "0")
    if backend == "graph":
        take_over_graphs()
    elif ranks == 1 and backend != "mapped":
        LaneTrainer.compute = compute  # type: ignore[method-assign]
    expected = {
        method: after_two_rounds(method, backend, Mesh(), folder / rank / f"{method}-cpu") for method in BUILT_IN
    }
    found = {}
    with imagined(), open_mesh(GPU, 1, 60, print) as mesh:
        assert bool(nccl_groups) == (ranks > 1)
        for method in BUILT_IN:
            found[method] = after_two_rounds(method, backend, mesh, folder / f"{method}-gpu")
    assert (Graph.replays > 4 * len(BUILT_IN)) == (backend == "graph"), Graph.replays
    differ = {
        method: max(abs(a - b) for a, b in zip(expected[method], found[method], strict=True)) for method in BUILT_IN
    }
    if mesh.is_main:
        print(json.dumps(differ))


if __name__ == "__main__":
    main()
