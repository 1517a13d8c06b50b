"""The one thread that all calls into a vLLM engine are made from, so that several callers can share its slots."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

CLOSE_SECONDS = 60.0  # for an engine to come back from its last step; one that hangs is left to the process's end

Job = tuple[Any, Any, Future[Any]]  # the prompt, its SamplingParams, and who waits


class Refused(Exception):
    """vLLM takes this request not, and others gladly; its text is the reason."""


class Closed(RuntimeError):
    """The engine was closed while the request waited."""


class EngineLoop:
    """Builds the engine, feeds it and steps it, until closed or until the engine dies.

    vLLM's engine is not thread-safe, and some of what it holds (the current CUDA device, sockets) is bound to a thread.
    """

    def __init__(self, build: Callable[[], Any], refusals: tuple[type[Exception], ...]) -> None:
        """`build` gives the LLMEngine; what it raises is raised here. `refusals` are what add_request raises of one."""
        self._refusals = refusals
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._ended: BaseException | None = None
        self._waiting: dict[str, Future[Any]] = {}
        built: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(build, built), name="vllm-engine", daemon=True)
        self._thread.start()
        built.result()

    def submit(self, prompt: Any, params: Any) -> Future[Any]:
        """The finished RequestOutput, to come. It raises Refused, Closed, or what the engine died of."""
        future: Future[Any] = Future()
        with self._gate:
            if self._ended is None:
                self._inbox.put((prompt, params, future))
            else:
                future.set_exception(self._ended)
        return future

    def close(self) -> None:
        """End the thread and the engine; whoever still waits gets Closed."""
        self._inbox.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _run(self, build: Callable[[], Any], built: Future[None]) -> None:
        try:
            engine = build()
        except BaseException as error:
            built.set_exception(error)
            return
        built.set_result(None)
        try:
            self._serve(engine)
            self._end(Closed("the vllm engine was closed"))
        except BaseException as error:  # the engine is dead, whatever it died of: nobody may wait for it
            self._end(error)
        finally:
            with suppress(Exception):  # a dead engine may fail at this too
                engine.engine_core.shutdown()

    def _serve(self, engine: Any) -> None:
        numbers = itertools.count()
        while True:
            # Everything that has arrived goes in before the next step. With vLLM's default of an engine core in a
            # process of its own, the GPU works on while this thread preprocesses images (vllm#42901).
            for item in self._arrived():
                if item is None:
                    return
                prompt, params, future = item
                name = str(next(numbers))
                self._waiting[name] = future
                try:
                    engine.add_request(name, prompt, params)
                except self._refusals as error:
                    del self._waiting[name]
                    future.set_exception(Refused(str(error)))
            for output in engine.step() if self._waiting else ():
                if output.finished:
                    self._waiting.pop(output.request_id).set_result(output)

    def _arrived(self) -> Iterator[Job | None]:
        """What is in the inbox; while the engine has nothing to do, the next that comes."""
        if not self._waiting:
            yield self._inbox.get()
        yield from self._drained()

    def _drained(self) -> Iterator[Job | None]:
        with suppress(queue.Empty):
            while True:
                yield self._inbox.get_nowait()

    def _end(self, error: BaseException) -> None:
        with self._gate:  # from here on `submit` itself answers
            self._ended = error
        left = [item[2] for item in self._drained() if item]
        for future in (*self._waiting.values(), *left):
            future.set_exception(error)
        self._waiting.clear()
