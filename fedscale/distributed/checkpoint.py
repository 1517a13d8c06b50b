"""One checkpoint folder that all ranks write into: published by the main one once the others are done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedscale import checkpoints, files
from fedscale.distributed.mesh import Mesh


@contextmanager
def checkpoint_of_all(mesh: Mesh, folder: Path, prefix: str, number: int) -> Iterator[Path]:
    """Yield the same temporary folder on every rank; when all leave well it becomes `folder/<prefix>_<number>`."""
    what = f"the checkpoint {prefix}_{number}"
    if mesh.is_main:
        with checkpoints.checkpoint(folder, prefix, number) as temporary:
            mesh.barrier(what)
            yield temporary
            mesh.barrier(what)
    else:
        mesh.barrier(what)
        try:
            yield checkpoints.under_way(folder, prefix, number)
        except Exception as error:
            files.raise_unwritable(folder / f"{prefix}_{number}", error)
        mesh.barrier(what)
    mesh.barrier(what)  # nobody looks for it before it is there


def newest_of_all(mesh: Mesh, folder: Path, prefix: str) -> tuple[int, Path] | None:
    """Number and folder of the newest complete checkpoint, as the main rank sees it."""
    found: tuple[int, Path] | None = mesh.broadcast_object(checkpoints.newest(folder, prefix) if mesh.is_main else None)
    return found
