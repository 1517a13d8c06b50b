"""Alignment between federated rounds: after every n-th one the server aligns the global model, and all go on with it.

The main rank trains alone, so that the result is the same for any number of ranks. The method's own state (moments,
control variates, the clients' rows) is left as it is: it tells of clients' updates, which begin at the aligned model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fedscale import files
from fedscale.config.schema import Config
from fedscale.data.manifest import Manifest
from fedscale.distributed.mesh import Mesh
from fedscale.distributed.waiting import by_main
from fedscale.models import build_model
from fedscale.progress import SilentReporter
from fedscale.rng import derive
from fedscale.runs import RunFolder
from fedscale.server.align.cache import alignment_set
from fedscale.server.align.draw import AlignmentSet
from fedscale.server.align.train import Alone, make_optimizer, train
from fedscale.session import Session


class BetweenRounds:
    """What federation does with the global model after a round, every `align.every` of them.

    After the last round it does nothing: stage 3 follows. Each alignment leaves its rows in `alignment.jsonl`.
    """

    def __init__(self, config: Config, run: RunFolder) -> None:
        self._config, self._run = config, run
        self._path = run.stage("federate") / "alignment.jsonl"
        self._num_classes = 0
        self._data: AlignmentSet | None = None  # the main rank's

    def prepare(self, manifest: Manifest, mesh: Mesh, session: Session) -> None:
        """Draw the set, or read it; every rank calls it. Raises UserError and Stopped like `alignment_set`."""
        self._num_classes = len(manifest.class_names)
        with _undetermined_allowed():
            self._data = by_main(
                mesh,
                session,
                lambda session: alignment_set(self._config, manifest, self._run, mesh.device, session),
            )

    def due(self, number: int) -> bool:
        """Whether the model is aligned after round `number`."""
        return number % self._config.align.every == 0 and number < self._config.federate.rounds

    def align(self, number: int, state: dict[str, Tensor], mesh: Mesh, session: Session) -> None:
        """Align the model of this state, in place on the main rank; every rank calls it.

        Raises UserError when the loss is not finite, Stopped after a signal on any rank, with the state as it was.
        """
        by_main(mesh, session, lambda session: self._align(number, state, mesh.device, session))

    def _align(self, number: int, state: dict[str, Tensor], device: torch.device, session: Session) -> None:
        config = self._config
        assert self._data is not None, "prepared before the first round"
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            model = build_model(config.model, self._num_classes, config.data.image_size).to(device)
        model.load_state_dict(state)
        rows = [row for row in files.read_jsonl(self._path) if row["round"] < number]

        def log(row: dict[str, Any]) -> None:
            rows.append({"round": number, **row})

        # Progress is told round by round, by federation itself.
        quiet = Session(SilentReporter(), session.stop)
        alone = Alone(model, make_optimizer(model, config))
        seed = derive(config.seed, "align after round", number)
        train(alone, Mesh(device=device), self._data, self._num_classes, config, seed, quiet, log)
        files.write_jsonl(self._path, rows)
        aligned = model.state_dict()
        with torch.no_grad():
            for name, tensor in state.items():
                tensor.copy_(aligned[name])


@contextmanager
def _undetermined_allowed() -> Iterator[None]:
    """Within the block deterministic algorithms are used where there are any: the teachers need others too."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
