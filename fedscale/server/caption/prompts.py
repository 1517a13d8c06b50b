"""Which questions are put about an image: of several a kind, the image's key chooses one."""

from __future__ import annotations

from fedscale.config.schema import CaptionConfig, PromptsConfig
from fedscale.rng import derive


def questions(config: CaptionConfig, kind: str, key: str) -> tuple[str, ...]:
    """The question of each turn (one turn but for a conversation), chosen by (seed, kind, key) alone."""
    offered = of_kind(config.prompts, kind)
    return offered[derive(config.seed, "question", kind, key) % len(offered)]


def of_kind(prompts: PromptsConfig, kind: str) -> tuple[tuple[str, ...], ...]:
    """All questions of a kind, each as its turns."""
    if kind == "conversation":
        return prompts.conversation
    return tuple((question,) for question in getattr(prompts, kind))


def asked(config: CaptionConfig, question: str, keyword: str | None) -> str:
    """The question as it is put: with `use_keyword` the crawl's words go before it, where the crawl has any."""
    if not (config.use_keyword and keyword):
        return question
    return config.prompts.hint.replace("{keyword}", keyword.replace("_", " ")) + question
