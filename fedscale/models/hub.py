"""Where a teacher's weights are: a folder on this machine or in the package, else a name on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedscale import house
from fedscale.errors import UserError

REMEDY = (
    "stage it with `fedscale fetch CONFIG` where there is a network, name a local folder, "
    "or add configs/overlays/offline_teachers.yaml"
)


def local_folder(name: str, marker: str, key: str) -> Path | None:
    """The folder that `name` means, or None for a hub name; `marker` is the file that such a folder holds.

    Raises UserError, naming `key`, for a folder without that file and for what can only be a path but does not exist.
    """
    try:
        folder = house.find(name, "folder of a teacher")
    except UserError:
        if name.startswith((".", "/", "~")):
            raise UserError(f"{key}={name}: no such folder; {REMEDY}") from None
        return None
    if not (folder / marker).is_file():
        raise UserError(f"{key}={name}: the folder {folder} holds no {marker}; expected a whole saved model")
    return folder


@contextmanager
def explained(key: str, name: str) -> Iterator[None]:
    """What transformers and open_clip raise when weights cannot be had (OSError, RuntimeError) as one UserError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{key}={name}: cannot be loaded ({reason[:160]}); {REMEDY}") from error
