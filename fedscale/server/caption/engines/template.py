"""The `template` engine: texts made from the crawl keyword alone, for machines without an MLLM. It sees no image."""

from __future__ import annotations

from collections.abc import Sequence

from fedscale.config.schema import CaptionConfig
from fedscale.errors import UserError
from fedscale.server.caption.engines import Answer, Request

TEMPLATES = {
    "description": "A photo of {}.",
    "conversation": "The main object in this image is {}.",
    "reasoning": "The main object in this image is {}, because its visible features are those of {}.",
}


class TemplateEngine:
    """Fills one sentence a kind with the keyword."""

    def __init__(self, config: CaptionConfig) -> None:
        self._kinds = config.kinds

    def answer(self, requests: Sequence[Request]) -> list[dict[str, Answer]]:
        """Raises UserError when an image has no keyword."""
        return [{kind: self._text(kind, request) for kind in self._kinds} for request in requests]

    def _text(self, kind: str, request: Request) -> Answer:
        if not request.keyword:
            raise UserError(f"caption.engine=template: image {request.key} has no crawl keyword; use caption.engine=hf")
        word = request.keyword.replace("_", " ")
        text = TEMPLATES[kind].replace("{}", f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}")
        return Answer(text, "stop", 0)
