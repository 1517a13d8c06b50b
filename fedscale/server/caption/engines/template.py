"""The `template` engine: texts made from the crawl keyword alone, for machines without an MLLM. It sees no image."""

from __future__ import annotations

from collections.abc import Sequence

from fedscale.server.caption.engines import Answer, Request

TEMPLATES = {
    "description": "A photo of {}.",
    "conversation": "The main object in this image is {}.",
    "reasoning": "The main object in this image is {}, because its visible features are those of {}.",
}


class TemplateEngine:
    """Fills one sentence a kind with the keyword."""

    in_flight = 1

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """An image without a keyword gets an error answer."""
        return [_answer(request) for request in requests]

    def close(self) -> None:
        """Nothing is held."""


def _answer(request: Request) -> Answer:
    if not request.keyword:
        return Answer("", "error", 0, "the image has no crawl keyword; caption.engine=hf needs none")
    word = request.keyword.replace("_", " ")
    text = TEMPLATES[request.kind].replace("{}", f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}")
    return Answer(text, "stop", 0)
