"""Two rounds of every method on the imagined GPU and on the CPU; prints, as JSON, by how much they differ.

    rounds.py FOLDER BACKEND

A client's step runs as while it is captured in a CUDA graph.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.imagined.gpu import GPU, captured, imagined, take_over

take_over()

import torch  # noqa: E402

from fedscale.config.methods import BUILT_IN  # noqa: E402
from fedscale.distributed.mesh import Mesh  # noqa: E402
from fedscale.federated.backends import LaneTrainer  # noqa: E402
from fedscale.federated.pool import Pool  # noqa: E402
from tests.federated.engine_support import make_engine, settings, trained  # noqa: E402
from tests.federated.methods.support import pool_of  # noqa: E402

OPTIONS = {"feddf": {"steps": 3}, "fedbe": {"steps": 3}}
step = LaneTrainer.compute


def compute(self: LaneTrainer, *args: object) -> torch.Tensor:
    with captured("a client's step"):
        return step(self, *args)  # type: ignore[arg-type]


def after_two_rounds(method: str, backend: str, device: torch.device, folder: Path) -> torch.Tensor:
    words = {"backend": backend, "lanes": 3 if backend == "batched" else 0, "momentum": 0.5, "weight_decay": 0.01}
    engine = make_engine(settings(method=method, **words), "small", Mesh(device=device), folder)
    pool = pool_of()
    engine.central.pool = Pool(pool.images.to(device), pool.labels.to(device))
    engine.survey("start", 0)
    trained(engine, (1, 2))
    engine.survey("end", 2)
    return engine.judged().cpu()


def main() -> None:
    folder, backend = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    found = {}
    for method in BUILT_IN:
        cpu = after_two_rounds(method, backend, torch.device("cpu"), folder / method / "cpu")
        with imagined():
            LaneTrainer.compute = compute  # type: ignore[method-assign]
            gpu = after_two_rounds(method, backend, GPU, folder / method / "gpu")
            LaneTrainer.compute = step  # type: ignore[method-assign]
        found[method] = float((cpu - gpu).abs().max())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
