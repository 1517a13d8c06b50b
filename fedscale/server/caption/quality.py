"""Whether an answer is any good (PITFALLS G 9): finished, not empty, not going round in circles."""

from __future__ import annotations

from fedscale.server.caption.engines import Answer

LONGEST_PHRASE = 12  # words
TIMES = 4  # a phrase said so often in a row is a loop
LEAST_WORDS = 8  # that a loop covers; "no, no, no, no" is emphasis


def status_of(answer: Answer) -> str:
    """The text status of an answer (`rows.TEXT_STATUSES`)."""
    if answer.finish == "error":
        return "generation_error"
    if not answer.text:
        return "empty"
    if answer.finish == "length":
        return "truncated"
    return "repeated" if loops(answer.text) else "ok"


def loops(text: str) -> bool:
    """Whether some phrase of 1 to 12 words comes four times in a row or more, over at least eight words."""
    words = text.casefold().split()
    for length in range(1, min(LONGEST_PHRASE, len(words) // TIMES) + 1):
        run = 0  # words in a row that equal the one a phrase earlier
        for here, before in zip(words[length:], words, strict=False):
            run = run + 1 if here == before else 0
            if run >= (TIMES - 1) * length and run + length >= LEAST_WORDS:
                return True
    return False
