"""How the inputs of two results differ, in the words of the config: what a stage's folder is refused by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

# Inputs that go by another name than their key in the config.
KEYS = {
    "partition": "data.partition",
    "clip": "teachers.clip",
    "mllm": "teachers.mllm",
    "lm": "teachers.lm",
    "offline": "teachers.offline",
    "pool_images": "caption.max_images",
    "offline_seed": "caption.seed",
    "align_every": "align.every",
}
# A stage's inputs hold those of a stage before it under its name. What can stand there, and in no section of that name:
OF_CAPTION = frozenset({"data", "caption", "mllm", "offline"})
OF_OTHERS = OF_CAPTION | {"seed", "model", "federate", "eval", "pretrain", "teachers", *KEYS}
BEFORE = {"caption": OF_CAPTION, "pretrain": OF_OTHERS, "federate": OF_OTHERS}


def differing(old: Any, new: Any, growing: Sequence[str] = ()) -> list[str]:
    """Lines `federate.lr was 0.1, is 0.5`, each once; paths that begin with one of `growing` and a dot are left out.

    `old` and `new` are the inputs of a stage, as `runs.stage_inputs` gives them and as JSON does.
    """
    found = dict.fromkeys(
        _line(key_of(path), before, now)
        for path, before, now in _leaves(old, new, "")
        if not f"{path}.".startswith(tuple(f"{one}." for one in growing))
    )
    return list(found)


def key_of(path: str) -> str:
    """The config's key of a dotted path into a stage's inputs."""
    parts = path.split(".")
    while len(parts) > 1 and parts[1] in BEFORE.get(parts[0], ()):
        parts = parts[1:]
    return ".".join([KEYS.get(parts[0], parts[0]), *parts[1:]])


def _leaves(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _leaves(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path, old, new


def _line(key: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) or isinstance(now, dict):  # a whole section is there, or is not
        key, before, now = f"{key}.enabled", before is not None, now is not None
    return f"{key} was {before}, is {now}"
