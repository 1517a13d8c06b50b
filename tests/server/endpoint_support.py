"""A local HTTP server with the one route of the OpenAI API that we use, which misbehaves as it is told."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from fedscale.server.caption.engines import backoff
from fedscale.server.caption.engines.openai import OpenAIEngine
from tests.server.engines_support import engine_config

KEY = "sk-a-secret-of-some-length"


@dataclass
class Reply:
    """What the server sends: a completion with `text`, or anything else that its fields say."""

    text: str = ""
    status: int = 200
    finish: Any = "stop"
    refusal: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None  # the body, instead of a completion or an error
    error: dict[str, Any] | None = None  # the `error` object of the body
    cut: int = 0  # bytes of the body that are announced but never sent
    reset: bool = False  # the connection, before any answer
    never: bool = False  # answer only once the server ends
    trickle: bool = False  # a byte now and then, so that no single read takes long

    def body(self) -> bytes:
        if self.raw is not None:
            return self.raw
        if self.error is not None:
            return json.dumps({"error": self.error}).encode()
        message = {"role": "assistant", "content": self.text, "refusal": self.refusal}
        words = len(self.text.split()) + 1
        usage = {"prompt_tokens": 9, "completion_tokens": words, "total_tokens": 9 + words}
        choice = {"index": 0, "message": message, "finish_reason": self.finish}
        completion = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "usage": usage}
        return json.dumps({**completion, "choices": [choice]}).encode()


@dataclass
class Seen:
    """One request as it arrived."""

    at: float
    authorization: str
    body: dict[str, Any]

    @property
    def question(self) -> str:
        content = self.body["messages"][-1]["content"]
        return content if isinstance(content, str) else content[1]["text"]

    @property
    def url(self) -> str:
        return self.body["messages"][0]["content"][0]["image_url"]["url"]

    def pixels(self) -> np.ndarray:
        data = base64.b64decode(self.url.partition("base64,")[2])
        return np.asarray(Image.open(io.BytesIO(data)))


def first_then_well(*replies: Reply) -> Callable[[Seen, int], Reply]:
    """A script: these replies to the first tries at a question, then what is right."""
    return lambda seen, nth: replies[nth - 1] if nth <= len(replies) else told_apart(seen)


def told_apart(seen: Seen) -> Reply:
    """A text that tells one request from another, and equal requests not."""
    asked = json.dumps([seen.body["messages"], seen.body["temperature"], seen.body["seed"]])
    return Reply(f"text {hashlib.sha256(asked.encode()).hexdigest()[:12]}")


class Endpoint(ThreadingHTTPServer):
    """`script(seen, nth)` decides on the nth try (from 1) at a question. `most` is the most requests ever under way."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, script: Callable[[Seen, int], Reply] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script or (lambda seen, nth: told_apart(seen))
        self.seen: list[Seen] = []
        self.most = self._under_way = 0
        self.arrived = threading.Condition()
        self.over = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def end(self) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""

    def wait_for(self, count: int) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.seen) >= count, timeout=20), f"{len(self.seen)} of {count}"

    def enter(self, seen: Seen) -> int:
        with self.arrived:
            self.seen.append(seen)
            self._under_way += 1
            self.most = max(self.most, self._under_way)
            self.arrived.notify_all()
            return sum(one.question == seen.question for one in self.seen)

    def leave(self) -> None:
        with self.arrived:
            self._under_way -= 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def log_message(self, *args: Any) -> None:
        """Nothing to the terminal."""

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        seen = Seen(time.monotonic(), self.headers.get("authorization", ""), json.loads(data))
        nth = self.server.enter(seen)
        reply = Reply(status=404, error={"message": f"no {self.path}"})
        if self.path == "/v1/chat/completions":
            reply = self.server.script(seen, nth)
        if reply.never:
            self.server.over.wait(60)
        self.server.leave()  # before the answer goes out: the client may send its next request at once
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        if reply.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        body = reply.body()
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if reply.trickle:
            for byte in body:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if self.server.over.wait(0.02):
                    return
        else:
            self.wfile.write(body[: len(body) - reply.cut])
        if reply.cut:
            self.close_connection = True


@contextmanager
def serving(monkeypatch: Any) -> Iterator[Callable[..., tuple[Endpoint, OpenAIEngine]]]:
    """A function that starts an endpoint with a script, and the engine that asks it; both end with the block."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(backoff, "FIRST_SECONDS", 0.001)
    ends: list[Callable[[], None]] = []

    def start(script: Any = None, *, caption: Any = None, **settings: Any) -> tuple[Endpoint, OpenAIEngine]:
        endpoint = Endpoint(script)
        ends.append(endpoint.end)
        sections = {"openai": {"base_url": endpoint.url, **settings}}
        engine = OpenAIEngine(engine_config("openai", sections=sections, **caption or {}))
        ends.append(engine.close)
        return endpoint, engine

    try:
        yield start
    finally:
        for end in reversed(ends):
            end()
