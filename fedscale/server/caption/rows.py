"""A caption row: what became of one image of the pool, and what was asked and answered about it."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any

from fedscale.errors import UserError

# From good to bad; a row has the worst status of its texts. The first four come from the engine's answers.
TEXT_STATUSES = ("ok", "repeated", "truncated", "empty", "generation_error")
IMAGE_STATUSES = ("decode_error", "too_large", "near_duplicate")
BAD_TEXTS = TEXT_STATUSES[1:]  # what the engine may better at another try
STATUSES = TEXT_STATUSES + IMAGE_STATUSES


@dataclass(frozen=True)
class Row:
    """One image's row. Only `ok` rows have a whole text of every kind; others may hold what came of it.

    `questions` and `texts` by kind are parallel lists, one entry a turn. `finish` is how the kind's last answer ended,
    `tokens` all that were generated for the kept texts, `attempts` how often a kind was begun; with the stage's `seed`
    and the key they determine every random draw.
    """

    key: str
    status: str
    keyword: str | None
    questions: dict[str, list[str]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    finish: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    seed: int = 0
    error: str = ""  # the reason of a decode_error, too_large or generation_error

    def text(self, kind: str) -> str:
        """All answers of a kind, a line each; empty where there is none."""
        return "\n".join(self.texts.get(kind, ()))

    def turns(self, kind: str) -> tuple[tuple[str, str], ...]:
        """(question, answer) of each turn of a kind."""
        return tuple(zip(self.questions[kind], self.texts[kind], strict=True))

    def names(self, words: frozenset[str]) -> bool | None:
        """Whether the text names the keyword; None where there is nothing to compare: no `ok` row, no class word.

        `words` are the classes: a foreign pool's keyword is often a whole sentence, which no caption repeats. The text
        is the conversation, or where none was asked for, all of them.
        """
        if self.status != "ok" or self.keyword is None or self.keyword not in words:
            return None
        text = self.text("conversation") or " ".join(self.text(kind) for kind in self.texts)
        word = re.escape(self.keyword.replace("_", " "))
        return re.search(rf"\b{word}(e?s)?\b", text, re.IGNORECASE) is not None

    def line(self) -> str:
        """The row as one line of JSON, in ASCII: no reader takes U+2028 inside a text for the end of a line."""
        return json.dumps(dataclasses.asdict(self)) + "\n"


def from_json(value: Any, where: str) -> Row:
    """A row out of its JSON object. Raises UserError, naming `where`, for anything that is none."""
    try:
        return Row(**value)
    except TypeError:
        raise UserError(f"{where}: not caption rows; delete it and run `fedscale caption` again") from None
