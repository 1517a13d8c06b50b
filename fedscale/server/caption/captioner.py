"""Ask the engine all questions about a group of images, and again what came out badly; the result is their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fedscale.config.schema import CaptionConfig
from fedscale.rng import derive
from fedscale.server.caption import prompts
from fedscale.server.caption.engines import Answer, Engine, Request
from fedscale.server.caption.quality import status_of
from fedscale.server.caption.rows import TEXT_STATUSES, Row


@dataclass(frozen=True, eq=False)
class Item:
    """One image to caption, uint8 [H, W, 3]; or why there is none, as a finished row.

    `attempts` by kind were made in earlier runs; a further one takes the next seed and a higher temperature.
    """

    key: str
    keyword: str | None
    image: Tensor | None
    row: Row | None = None
    attempts: dict[str, int] = field(default_factory=dict)


@dataclass(eq=False)
class _Dialogue:
    """One kind of text under way: what was asked and answered, and the attempt at the present turn."""

    item: Item
    kind: str
    questions: tuple[str, ...]
    attempt: int  # counts on from earlier runs
    left: int  # attempts at the present turn
    most: int = 0  # attempts that one turn took
    answers: list[str] = field(default_factory=list)
    tokens: int = 0
    last: Answer | None = None
    status: str = "ok"

    @property
    def done(self) -> bool:
        return len(self.answers) == len(self.questions) or self.left == 0


class Captioner:
    """Questions, retries and judgement; the engine only answers. Safe to be used from several threads at once."""

    def __init__(self, config: CaptionConfig, engine: Engine) -> None:
        self._config, self._engine = config, engine
        self._tries = 1 + len(config.retry_temperatures)

    def rows(self, items: Sequence[Item]) -> list[Row]:
        """The rows of the items, in their order. Raises what the engine raises."""
        dialogues = [
            [self._begin(item, kind) for kind in self._config.kinds] if item.image is not None else [] for item in items
        ]
        waiting = [dialogue for several in dialogues for dialogue in several]
        while waiting:
            answers = self._engine.generate([self._request(dialogue) for dialogue in waiting])
            for dialogue, answer in zip(waiting, answers, strict=True):
                self._take(dialogue, answer)
            waiting = [dialogue for dialogue in waiting if not dialogue.done]
        return [item.row or self._row(item, several) for item, several in zip(items, dialogues, strict=True)]

    def _begin(self, item: Item, kind: str) -> _Dialogue:
        asked = prompts.questions(self._config, kind, item.key)
        return _Dialogue(item, kind, asked, attempt=item.attempts.get(kind, 0), left=self._tries)

    def _request(self, dialogue: _Dialogue) -> Request:
        item, turn = dialogue.item, len(dialogue.answers)
        assert item.image is not None, "only images are asked about"
        put = [prompts.asked(self._config, question, item.keyword) for question in dialogue.questions[:1]]
        put += dialogue.questions[1 : turn + 1]  # the hint is in sight already
        return Request(
            item.key,
            dialogue.kind,
            item.image,
            put[turn],
            tuple(zip(put, dialogue.answers, strict=False)),
            item.keyword,
            self._temperature(dialogue.attempt),
            derive(self._config.seed, "caption", dialogue.kind, item.key, turn, dialogue.attempt),
        )

    def _temperature(self, attempt: int) -> float:
        ladder = self._config.retry_temperatures
        return self._config.temperature if attempt == 0 or not ladder else ladder[min(attempt, len(ladder)) - 1]

    def _take(self, dialogue: _Dialogue, answer: Answer) -> None:
        dialogue.last, dialogue.status = answer, status_of(answer)
        dialogue.attempt += 1
        dialogue.left -= 1
        dialogue.most = max(dialogue.most, dialogue.attempt)
        if dialogue.status == "ok":
            dialogue.answers.append(answer.text)
            dialogue.tokens += answer.tokens
            if len(dialogue.answers) < len(dialogue.questions):  # the next turn has its own attempts
                dialogue.attempt, dialogue.left = dialogue.item.attempts.get(dialogue.kind, 0), self._tries

    def _row(self, item: Item, dialogues: list[_Dialogue]) -> Row:
        questions: dict[str, list[str]] = {}
        texts: dict[str, list[str]] = {}
        finish: dict[str, str] = {}
        tokens: dict[str, int] = {}
        attempts: dict[str, int] = {}
        status, error = "ok", ""
        for dialogue in dialogues:
            kind, last = dialogue.kind, dialogue.last
            assert last is not None, "every dialogue is asked at least once"
            given, counted = list(dialogue.answers), dialogue.tokens
            if dialogue.status != "ok" and last.text:  # kept to be looked at; the status says what it is worth
                given, counted = [*given, last.text], counted + last.tokens
            questions[kind], texts[kind] = list(dialogue.questions[: len(given)]), given
            finish[kind], tokens[kind], attempts[kind] = last.finish, counted, dialogue.most
            status = max(status, dialogue.status, key=TEXT_STATUSES.index)
            error = error or last.error
        return Row(item.key, status, item.keyword, questions, texts, finish, tokens, attempts, self._config.seed, error)
