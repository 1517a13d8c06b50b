"""Which class a crawl's keyword names: `Maple_Tree` and `maple tree` are one."""

from __future__ import annotations

from collections.abc import Sequence


class KeywordClasses:
    """Keywords to labels, for these class names."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self._labels = {_word(name): label for label, name in enumerate(class_names)}

    def __call__(self, keyword: str | None) -> int | None:
        """The label of the class that the keyword names, or None."""
        return self._labels.get(_word(keyword)) if keyword else None


def _word(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())
