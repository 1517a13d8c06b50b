"""Where a teacher's weights are: a folder on this machine or in the package, else a name on the hub; and their type."""

from __future__ import annotations

import os
import socket
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fedscale import house
from fedscale.errors import UserError

REMEDY = (
    "stage it with `fedscale fetch CONFIG` where there is a network, name a local folder, "
    "or add configs/overlays/offline_teachers.yaml"
)
CONNECT_SECONDS = 5.0


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
def offline_where_unreachable() -> Iterator[None]:
    """Within the block the hub clients use their caches alone if the hub cannot be reached.

    Left to themselves they retry every file for most of a minute, also the files that are in the cache.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(endpoint: str) -> bool:
    """Whether a connection to the hub opens; behind a proxy only the proxy could tell, so it is assumed."""
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    url = urllib.parse.urlparse(endpoint)
    try:
        socket.create_connection((url.hostname or "", url.port or 443), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


@contextmanager
def without_bars() -> Iterator[None]:
    """Within the block transformers shows no progress bars of its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def dtype_on(asked: str, device: torch.device) -> str:
    """What transformers should load weights as; `auto` is float32 on a CPU, bfloat16 on a GPU that computes in it.

    On another GPU it stays `auto`, the checkpoint's own.
    """
    if asked != "auto":
        return asked
    if device.type == "cpu":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "auto"


@contextmanager
def explained(key: str, name: str) -> Iterator[None]:
    """What transformers and open_clip raise when weights cannot be had (OSError, RuntimeError) as one UserError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{key}={name}: cannot be loaded ({reason[:160]}); {REMEDY}") from error
