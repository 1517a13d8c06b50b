"""Code of other packages by name, `package.module:Name`, or by an entry point that they declare."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Collection
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from fedscale.errors import UserError


def installed(group: str) -> dict[str, str]:
    """Names and targets (`package.module:Name`) of the installed packages' entry points of a group."""
    return {entry.name: entry.value for entry in metadata.entry_points(group=group)}


def target_of(name: str, key: str, group: str, built_in: Collection[str]) -> str:
    """`package.module:Name` that a name which is not `built_in` stands for; nothing is imported to know.

    Raises UserError, naming the config's `key`, for a name that is neither a target itself nor an entry point.
    """
    if ":" in name:
        return name
    others = installed(group)
    if name in others:
        return others[name]
    known = [*built_in, *others]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"{key}={name}: expected one of {', '.join(known)}, or package.module:Name{hint}")


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


def word_of(thing: Any) -> str:
    """`package.module:Name` of a class or function, for a config. Raises UserError for one that has no such name."""
    word = f"{thing.__module__}:{thing.__qualname__}"
    try:
        found = load(word, "")
    except UserError:
        found = None
    if found is not thing:
        raise UserError(f"{word}: cannot be found by this name; define it at the top of a module, or of the script")
    return word


def called(make: Any, where: str, *arguments: Any) -> Any:
    """`make(*arguments)`. Raises UserError, `where` in front, for what cannot be called so; its own errors pass on."""
    try:
        inspect.signature(make).bind(*arguments)
    except (TypeError, ValueError) as error:
        wanted = ", ".join(type(argument).__name__ for argument in arguments)
        raise UserError(f"{where}: cannot be called with ({wanted}): {error}") from None
    return make(*arguments)
