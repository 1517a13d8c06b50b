"""Code of other packages by name, `package.module:Name`, or by an entry point that they declare."""

from __future__ import annotations

import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from fedscale.errors import UserError


def installed(group: str) -> dict[str, str]:
    """Names and targets (`package.module:Name`) of the installed packages' entry points of a group."""
    return {entry.name: entry.value for entry in metadata.entry_points(group=group)}


def load(target: str, key: str) -> Any:
    """What `package.module:Name` stands for; modules in the working folder are found too.

    Raises UserError, naming the config's `key`, where there is no such thing or it cannot be imported.
    """
    module_name, _, name = target.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # the console script's path has the script's folder in the place of the working one
    try:
        module = import_module(module_name)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{key}={target}: {module_name} cannot be imported ({reason})") from error
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise UserError(f"{key}={target}: {module_name} has no {name}")
        found = getattr(found, part)
    return found
