"""The `graph` backend: a step replayed as one CUDA graph, or compiled by torch.compile on a CPU.

A CUDA graph holds gather, augmentation, forward, backward and update of one shape of step (lanes, batch). The first
step of a shape runs as ever (it warms up the libraries), the second is captured, the others are replays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedscale.errors import UserError
from fedscale.federated.backends.trainer import LaneTrainer
from fedscale.federated.lanes.state import LaneView

MOST_GRAPHS = 64  # shapes of steps that are captured; further ones run uncaptured


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    rows: Tensor  # [L, B], filled before each replay
    losses: Tensor  # [L], filled by each replay


class GraphTrainer(LaneTrainer):
    """A LaneTrainer whose steps are replayed CUDA graphs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.data.resident:
            raise UserError("federate.backend=graph: needs the images on the GPU; set federate.store=resident")
        device = self._like.device
        self._number = torch.zeros((), dtype=torch.int64, device=device)
        self._augment_keys = torch.zeros(self.state.lanes, dtype=torch.int64, device=device)
        self._dropout_keys = torch.zeros(self.state.lanes, dtype=torch.int64, device=device)
        self._graphs: dict[tuple[int, int, int], _Captured] = {}
        self._seen: set[tuple[int, int, int]] = set()
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = None

    def step(self, staged: Any, view: LaneView, step: int, size: int) -> Tensor:
        key = (view.start, view.stop, size)
        rows = staged.rows[step, view.start : view.stop, :size]
        if step == 0 and view.start == 0:
            self._augment_keys[: len(staged.augment_keys)].copy_(staged.augment_keys)
            self._dropout_keys[: len(staged.dropout_keys)].copy_(staged.dropout_keys)
        self._number.fill_(step)
        captured = self._graphs.get(key)
        if captured is None:
            if key not in self._seen or len(self._graphs) == MOST_GRAPHS:
                self._seen.add(key)
                return self._eager(staged, rows, view)
            captured = self._graphs[key] = self._capture(staged, rows, view)
        captured.rows.copy_(rows)
        captured.graph.replay()
        return captured.losses

    def _eager(self, staged: Any, rows: Tensor, view: LaneView) -> Tensor:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            losses = self.compute(staged, rows, self._augment_keys, self._dropout_keys, view, self._number)
        torch.cuda.current_stream().wait_stream(self._stream)
        return losses

    def _capture(self, staged: Any, rows: Tensor, view: LaneView) -> _Captured:
        held, graph = rows.clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            losses = self.compute(staged, held, self._augment_keys, self._dropout_keys, view, self._number)
        self._pool = self._pool or graph.pool()
        return _Captured(graph, held, losses)


class CompiledTrainer(LaneTrainer):
    """A LaneTrainer whose forward and backward are compiled (torch.compile), for CPUs."""

    compiled = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Shapes of steps are few and recur; each is compiled for itself.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
        self.losses = torch.compile(self.losses, dynamic=False)  # type: ignore[method-assign]

    def step(self, staged: Any, view: LaneView, step: int, size: int) -> Tensor:
        rows = staged.rows[step, view.start : view.stop, :size]
        number = torch.tensor(step)  # as a number it would be compiled in
        return self.compute(staged, rows, staged.augment_keys, staged.dropout_keys, view, number)
