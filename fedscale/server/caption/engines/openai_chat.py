"""One question as a chat completion of the OpenAI API, and what each outcome of it means. Nothing is sent from here."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedscale.config.schema import CaptionConfig, OpenAIConfig
from fedscale.errors import UserError
from fedscale.server.caption.engines import Answer, Request

if TYPE_CHECKING:
    import openai

OWN_HOSTS = ("openai.com", "azure.com")
SETTINGS = ("model", "temperature", "seed", "max_tokens", "max_completion_tokens")  # the same in every request
PASSING = (408, 409, 425, 429)  # statuses that may go away, as all from 500 do
SECRET_LENGTH = 8  # characters; a shorter key is the dummy of a local endpoint, and taking it out would garble texts
SHOWN = 200  # characters of what an endpoint says


class Transient(Exception):
    """An outcome that another try may better; `headers` are the endpoint's, which may ask for a pause."""

    def __init__(self, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.headers = headers or {}


def api_key(config: OpenAIConfig) -> str:
    """The key, from the environment alone. Raises UserError where there is none or where no header could hold it."""
    name = config.key_env
    key = os.environ.get(name, "").strip()
    if not key:
        raise UserError(
            f"caption.openai.key_env={name}: the environment variable {name} is not set; expected the endpoint's key "
            f"in it (any word does for an endpoint that asks for none, such as a local server)"
        )
    if not (key.isascii() and key.isprintable()):  # an HTTP library's own error would show the key
        raise UserError(f"caption.openai.key_env={name}: the key in {name} has characters that no key has; set it anew")
    return key


class Chat:
    """How the configured endpoint is asked, and how its outcomes are read. Whatever it says, no text shows the key."""

    def __init__(self, config: CaptionConfig, key: str) -> None:
        self._config, self._key = config.openai, key
        host = urllib.parse.urlparse(config.openai.base_url).hostname or ""
        # OpenAI's newer models refuse `max_tokens`; of the servers that copy its API all know that name, but some
        # (ollama#7125) do not know `max_completion_tokens`, and would then not cut at all.
        own = any(host == name or host.endswith(f".{name}") for name in OWN_HOSTS)
        self._limit = {"max_completion_tokens" if own else "max_tokens": config.max_new_tokens}

    def body(self, request: Request, url: str) -> dict[str, Any]:
        """The arguments of `chat.completions.create`; the image goes with the first question."""
        turns: list[dict[str, Any]] = []
        for question, answer in request.history:
            turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        turns.append({"role": "user", "content": request.question})
        image = {"type": "image_url", "image_url": {"url": url}}
        turns[0]["content"] = [image, {"type": "text", "text": turns[0]["content"]}]
        asked = {"model": self._config.model, "messages": turns, "temperature": request.temperature}
        return {**asked, "seed": request.seed, **self._limit}

    def answer(self, completion: Any) -> Answer:
        """What came with status 200. Raises Transient when that is no chat completion.

        The library fills its types without checking them, so anything may be missing or of another type.
        """
        try:
            choice = completion.choices[0]
            text, finish, refusal = choice.message.content or "", choice.finish_reason, choice.message.refusal
            tokens = int(completion.usage.completion_tokens) if completion.usage else 0
            text = text.strip()
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise Transient("an answer that is no chat completion") from None
        if refusal:
            return self.error(f"the model refuses: {refusal}")
        if finish not in ("stop", "length"):
            return self.error(f"the endpoint ended the text with finish_reason={finish}")
        return Answer(text, finish, tokens)

    def judged(self, error: openai.APIError) -> Answer:
        """What an error of the library means for its request: an error answer where the request itself is refused.

        Raises Transient where another try may help, and UserError where every request would be refused.
        """
        response, said = getattr(error, "response", None), self._said(error)
        if response is None:  # no connection, or one that broke
            raise Transient(said)
        status = response.status_code
        self._check_settings(error, status, said)
        if status in PASSING or status >= 500:
            raise Transient(f"HTTP {status}: {said}", response.headers)
        return self.error(f"HTTP {status}: {said}")

    def error(self, reason: str) -> Answer:
        """An error answer, in one line without the key."""
        return Answer("", "error", 0, self._clean(reason))

    def _check_settings(self, error: openai.APIError, status: int, said: str) -> None:
        where, key, name = self._config.base_url, self._config.key_env, self._config.model
        told = f"{where} answers {status} ({said})"
        if status in (401, 403):
            raise UserError(f"caption.openai.key_env={key}: {told}; expected in {key} a key that it accepts")
        if status == 402 or error.code == "insufficient_quota":
            raise UserError(f"caption.openai.key_env={key}: {told}; expected credit on the key's account, add some")
        if status == 404:
            raise UserError(
                f"caption.openai.model={name}: {told}; expected a model that the endpoint serves, "
                f"at caption.openai.base_url (which most often ends in /v1)"
            )
        if status in (400, 422) and error.param in SETTINGS:
            raise UserError(f"caption.openai.model={name}: {told}; it takes no such {error.param}, choose another")

    def _said(self, error: openai.APIError) -> str:
        body = error.body
        text = body.get("message") if isinstance(body, dict) else body
        if not text:  # nothing arrived: the cause says whether the name, the connection or the answer broke
            text = f"{error.message} {error.__cause__ or ''}"
        return self._clean(str(text))

    def _clean(self, text: str) -> str:
        if len(self._key) >= SECRET_LENGTH:
            text = text.replace(self._key, "(the key)")
        return " ".join(text.split())[:SHOWN]
