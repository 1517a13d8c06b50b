"""The `openai` engine: any endpoint of the OpenAI API, GPT-4o and its kin or a vLLM server, at caption.openai.base_url.

Images travel as data URLs (`pictures.data_url`). The library's own retries are switched off: they neither ask again
after a broken body nor bound an answer that trickles, and both must share one budget of tries (openai 3.54).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import math
import threading
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fedscale.config.schema import Config
from fedscale.errors import UserError
from fedscale.rng import derive
from fedscale.server.caption.engines import Answer, Request
from fedscale.server.caption.engines.backoff import wait_seconds
from fedscale.server.caption.engines.openai_chat import Chat, Transient, api_key
from fedscale.server.caption.engines.pictures import BadImage, data_url


class OpenAIEngine:
    """One event loop, in a thread of its own, carries the requests of all calls, `concurrency` at once.

    `seed` and temperature 0 are passed on, but most endpoints only promise to try to repeat an answer.
    """

    def __init__(self, config: Config) -> None:
        self._openai = _library()
        self._settings = config.caption.openai
        if not self._settings.base_url.startswith(("http://", "https://")):
            raise UserError(f"caption.openai.base_url={self._settings.base_url}: expected http://… or https://…")
        # One call more than fills the slots: while the last answers of one are awaited, the next has begun.
        self.in_flight = 1 + math.ceil(self._settings.concurrency / config.caption.batch_size)
        key = api_key(self._settings)
        self._chat = Chat(config.caption, key)
        self._client: Any = self._openai.AsyncOpenAI(
            api_key=key, base_url=self._settings.base_url, timeout=self._settings.timeout, max_retries=0
        )
        self._slots = asyncio.Semaphore(self._settings.concurrency)
        self._gate, self._closed = threading.Lock(), False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="openai-engine", daemon=True)
        self._thread.start()

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """Raises UserError, and breaks off this call, when the endpoint refuses the key, the model or a setting."""
        with self._gate:  # so that no call enters the loop after its end
            if self._closed:
                raise RuntimeError("the openai engine is closed")
            call = asyncio.run_coroutine_threadsafe(self._answers(requests), self._loop)
        try:
            return call.result()
        except concurrent.futures.CancelledError:
            raise RuntimeError("the openai engine was closed during this call") from None
        except BaseException:
            call.cancel()  # an interrupted caller leaves no requests behind
            raise

    def close(self) -> None:
        """Break off what is under way (those calls raise RuntimeError), and end the thread and the connections."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
            asyncio.run_coroutine_threadsafe(self._break_off(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _answers(self, requests: Sequence[Request]) -> list[Answer]:
        urls: dict[int, asyncio.Task[str | Answer]] = {}  # by image: questions about one share its encoding
        try:
            async with asyncio.TaskGroup() as group:  # the first UserError cancels the others
                for request in requests:
                    if id(request.image) not in urls:
                        urls[id(request.image)] = group.create_task(self._encoded(request.image))
                tasks = [group.create_task(self._one(request, urls[id(request.image)])) for request in requests]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _encoded(self, image: Tensor) -> str | Answer:
        try:
            return await asyncio.to_thread(data_url, image)
        except BadImage as error:
            return self._chat.error(str(error))

    async def _one(self, request: Request, encoding: asyncio.Task[str | Answer]) -> Answer:
        """The answer to one request, asked up to 1 + retries times.

        It keeps its slot while it waits to ask again: an endpoint that asks for less load gets less.
        """
        url = await encoding
        if isinstance(url, Answer):
            return url
        async with self._slots:
            tries = 0
            while True:
                tries += 1
                try:
                    return await self._ask(request, url)
                except Transient as error:
                    chance = derive(request.seed, "backoff", request.key, request.kind, tries) / 2**63
                    wait = wait_seconds(tries, chance, error.headers)
                    if wait is None or tries > self._settings.retries:
                        return self._chat.error(f"gave up after {tries} tries: {error}")
                await asyncio.sleep(wait)

    async def _ask(self, request: Request, url: str) -> Answer:
        try:
            async with asyncio.timeout(self._settings.timeout):  # of the whole answer; the client's is of each read
                completion = await self._client.chat.completions.create(**self._chat.body(request, url))
        except TimeoutError:
            raise Transient(f"no answer within {self._settings.timeout:g} s") from None
        except self._openai.APIError as error:
            return self._chat.judged(error)
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise Transient("an answer that is not JSON") from None
        return self._chat.answer(completion)

    async def _break_off(self) -> None:
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._client.close()
        await self._loop.shutdown_default_executor()


def _library() -> Any:
    try:
        import openai
    except ImportError:
        raise UserError(
            "caption.engine=openai: the openai library is not installed; run `pip install 'mllm-fedscale[openai]'`"
        ) from None
    return openai
