"""CUDA graphs on the imagined GPU: captured operations are kept with the very tensors that they read and wrote.

As on a real one a capture changes nothing, and a replay works on the memory of the capture: what is not copied into
that memory is not seen.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.imagined import gpu


class Graph:
    """In the place of torch.cuda.CUDAGraph."""

    replays = 0  # of all graphs

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, dict[str, Any], Any]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}  # of what the capture wrote, by its address

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Carry out a captured operation, on plain tensors, so that what follows has its results to go on from."""
        for argument, given in zip(func._schema.arguments, args, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written or argument.name.startswith("running_"):  # which batch norm's schema does not tell
                for tensor in filter(None.__ne__, tree_leaves(given)):
                    whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
                    self._before.setdefault(whole.data_ptr(), (whole, whole.clone()))
        found = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, found))
        return found

    def undo(self) -> None:
        """At the end of the capture, of which nothing has happened."""
        for whole, before in self._before.values():
            whole.copy_(before)

    def pool(self) -> str:
        return "the memory of the graphs"

    def replay(self) -> None:
        """All operations again; a new result goes where the captured one lies."""
        Graph.replays += 1
        for func, args, kwargs, found in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


@contextlib.contextmanager
def captured(graph: Graph, pool: Any = None, stream: Any = None) -> Iterator[None]:
    """In the place of torch.cuda.graph."""
    with gpu.captured("a graph", graph):
        yield
    graph.undo()


def take_over_graphs() -> None:
    """Put graphs and streams in the place of CUDA's, and have the `graph` backend use them."""
    from fedscale.federated.backends.workshop import Workshop

    torch.cuda.CUDAGraph, torch.cuda.graph = Graph, captured  # type: ignore
    torch.cuda.Stream = lambda device=None: gpu.Stream()  # type: ignore
    torch.cuda.current_stream = lambda device=None: gpu.Stream()  # type: ignore
    torch.cuda.stream = lambda stream: contextlib.nullcontext()  # type: ignore
    Workshop.on_gpu = property(lambda self: self.like.device == gpu.GPU)  # type: ignore
