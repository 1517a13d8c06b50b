"""The commands that README and docs show: each line of a bash block, and code in tables and sentences that is one.

What is no command for this machine says so behind it, on its line: "needs a GPU", "needs GPUs", "needs hours".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LAUNCHERS = ("torchrun", "accelerate", "deepspeed", "srun", "sbatch")  # of something
PROGRAMS = (*LAUNCHERS, "fedscale", "make", "python", "pip", "launch/two_nodes.sh", "source")
NEEDS = re.compile(r"\bneeds (a GPU|GPUs|hours)\b")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`([^`\n]*)")
QUOTED = r"'[^']*'|\"[^\"]*\""
COMMENT = re.compile(rf"((?:{QUOTED}|[^'\"#])*)(#.*)?$")
PARTS = re.compile(rf"((?:{QUOTED}|[^'\";])+)(?:;|$)")


@dataclass(frozen=True)
class Command:
    """One command of a page, its blanks made single; `needs` is what this machine may lack, or empty."""

    text: str
    page: str
    needs: str = ""


def documented() -> dict[str, Command]:
    """Every command by its text, in the order of the pages; one that needs something anywhere needs it."""
    found: dict[str, Command] = {}
    for path in PAGES:
        for command in commands_of(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()):
            if command.text not in found or command.needs:
                found[command.text] = command
    return found


def commands_of(text: str, page: str) -> Iterator[Command]:
    """The commands of one page. Raises ValueError for one that stands in a block of another kind than bash."""
    for kind, block in FENCE.findall(text):
        if kind == "bash":
            yield from _lines(block, page)
        elif kind in ("", "console", "sh", "text") and (strays := [line for line in block.splitlines() if _is(line)]):
            raise ValueError(f"{page}: a command outside a bash block: {strays[0]}")
    for code, behind in CODE.findall(FENCE.sub("", text)):
        for part in PARTS.findall(code):
            if _is(part):
                yield Command(_plain(part), page, _needs(behind))


def _lines(block: str, page: str) -> Iterator[Command]:
    for line in block.replace("\\\n", " ").splitlines():
        matched = COMMENT.match(line)
        assert matched, f"{page}: quotes that do not close: {line}"
        for part in PARTS.findall(matched[1]):
            if part.strip():
                yield Command(_plain(part), page, _needs(matched[2] or ""))


def _is(text: str) -> bool:
    first, _, rest = text.strip().partition(" ")
    return first in PROGRAMS and bool(rest) and (first not in LAUNCHERS or "fedscale" in rest)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _needs(text: str) -> str:
    found = NEEDS.search(text)
    return found[1] if found else ""
