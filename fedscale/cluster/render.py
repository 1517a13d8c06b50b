"""Scripts from the templates of launch/slurm: parts put in, then the words in capitals, quoted for who reads them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from fedscale import house
from fedscale.cluster.request import VARIABLE
from fedscale.errors import UserError

FOLDER = "launch/slurm"
PART = re.compile(r"^#include (\S+)\n", re.MULTILINE)
OPTIONS = re.compile(r"^#SBATCH __OPTIONS__\n", re.MULTILINE)
WORD = re.compile(r"__([A-Z_]+?)__")
PLAIN = re.compile(r"[\w.,:+%@/=*-]+")


def render(template: str, values: Mapping[str, str], parts: Mapping[str, str | None], options: list[str]) -> str:
    """The script of a template. `parts` says which file stands for an `#include`, None for none at all.

    `values` are put in as they are, all at once, so that none is looked at for words again: quote them first.
    """
    text = _with_parts(_read(template), parts)
    text = OPTIONS.sub(lambda _: "".join(f"#SBATCH {option}\n" for option in options), text)
    return WORD.sub(lambda found: values[found[1]], text)


def directive(value: str, what: str) -> str:
    """A value for a line `#SBATCH --option=value`. Raises UserError, naming `what`, for one that no line can hold.

    sbatch knows double quotes there; they end at the next one, and a line is a line.
    """
    if PLAIN.fullmatch(value):
        return value
    if not value.isprintable() or '"' in value or "\\" in value:
        raise UserError(f"{what}={value!r}: Slurm's scripts cannot name it; choose one without quotes and backslashes")
    return f'"{value}"'


def node_folder(path: str) -> str:
    """A folder as a word for bash: a variable at its beginning is looked up on the node, all else is literal."""
    found = VARIABLE.fullmatch(path)
    if not found:
        return shlex.quote(path)
    rest = found[2] or ""
    return f'"${{{found[1].strip("{}")}:?}}"' + (shlex.quote(rest) if rest else "")


def _read(name: str) -> str:
    return house.find(f"{FOLDER}/{name}", "Slurm script").read_text(encoding="utf-8")


def _with_parts(text: str, parts: Mapping[str, str | None]) -> str:
    def put(found: re.Match[str]) -> str:
        name = parts.get(found[1], found[1])
        return _with_parts(_read(name), parts) + "\n" if name else ""

    return PART.sub(put, text)
