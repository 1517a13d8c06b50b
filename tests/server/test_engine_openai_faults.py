"""The `openai` engine against a real HTTP server that misbehaves: what is asked again, given up, or ends the call."""

import dataclasses
import threading
import time
from email.utils import formatdate

import pytest

from fedscale.errors import UserError
from fedscale.server.caption.engines import backoff
from tests.server.endpoint_support import Reply, first_then_well, serving, told_apart
from tests.server.engines_support import Calling, request, requests

MALFORMED = [b"", b"{", b"null", b"[]", b'"text"', b"{}", b"<html>"]
MALFORMED += [b'{"choices": %s}' % inner for inner in (b"null", b"[]", b"3", b"[{}]", b'[{"message": null}]')]
MALFORMED += [b'{"choices": [{"message": {"content": 7}, "finish_reason": "stop"}]}', b"\xff\xfe"]


@pytest.fixture
def serve(monkeypatch):
    with serving(monkeypatch) as start:
        yield start


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=429, error={"message": "slow down"}),
        Reply(status=500, raw=b"<html>oops</html>", headers={"Content-Type": "text/html"}),
        Reply(status=503, error={"message": "overloaded"}),
        Reply(status=408),
        Reply(reset=True),
        Reply("half", cut=20),
        Reply(raw=b"not gzip", headers={"Content-Encoding": "gzip"}),
        *(Reply(raw=raw) for raw in MALFORMED),
        Reply(raw=b"<html>", headers={"Content-Type": "text/html"}),
    ],
    ids=lambda reply: str(reply.raw or reply.status)[:40],
)
def test_what_may_pass_is_asked_again(serve, reply):
    endpoint, engine = serve(first_then_well(reply, reply), retries=2)
    (answer,) = engine.generate(requests(1))
    assert answer.finish == "stop" and answer.text.startswith("text ")
    assert len(endpoint.seen) == 3


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(status=500, error={"message": "out of\nluck"}), "gave up after 2 tries: HTTP 500: out of luck"),
        (Reply(status=429, error={"message": "slow down"}), "gave up after 2 tries: HTTP 429: slow down"),
        (Reply(reset=True), "gave up after 2 tries: Connection error"),
        (Reply("half", cut=20), "gave up after 2 tries: Connection error"),
        (Reply(raw=b"{"), "gave up after 2 tries: an answer that is not JSON"),
        (Reply(raw=b"{}"), "gave up after 2 tries: an answer that is no chat completion"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_exhausted_retries_are_an_error_answer_that_says_why(serve, reply, reason):
    endpoint, engine = serve(lambda seen, nth: reply if "picture 1" in seen.question else told_apart(seen), retries=1)
    good, bad, other = engine.generate(requests(3))
    assert (bad.text, bad.finish, bad.tokens) == ("", "error", 0) and bad.error.startswith(reason)
    assert good.finish == other.finish == "stop"
    assert len(endpoint.seen) == 4


def test_retry_after_is_waited_for(serve):
    endpoint, engine = serve(first_then_well(Reply(status=429, headers={"Retry-After": "0.3"})))
    assert engine.generate(requests(1))[0].finish == "stop"
    assert endpoint.seen[1].at - endpoint.seen[0].at >= 0.3


def test_an_endpoint_that_asks_for_an_hour_is_not_waited_for(serve):
    endpoint, engine = serve(first_then_well(Reply(status=503, headers={"Retry-After": "3600"})))
    assert engine.generate(requests(1))[0].error.startswith("gave up after 1 tries: HTTP 503")
    assert len(endpoint.seen) == 1


def test_waits_double_and_are_spread_and_bounded():
    assert [backoff.wait_seconds(tries, 0.0, {}) for tries in (1, 2, 3, 4)] == [1, 2, 4, 8]
    assert backoff.wait_seconds(3, 0.5, {}) == 3.0 and backoff.wait_seconds(3, 0.999, {}) > 2.0
    assert backoff.wait_seconds(50, 0.0, {}) == backoff.LONGEST_SECONDS
    assert backoff.wait_seconds(1, 0.9, {"retry-after": "7"}) == 7
    assert 20 < backoff.wait_seconds(1, 0.0, {"retry-after": formatdate(time.time() + 30, usegmt=True)}) <= 30
    for unreadable in ("soon", "nan", "-3", "0", formatdate(time.time() - 30, usegmt=True)):
        assert backoff.wait_seconds(1, 0.0, {"retry-after": unreadable}) == 1
    assert backoff.wait_seconds(1, 0.0, {"retry-after": "121"}) is None
    assert backoff.wait_seconds(1, 0.0, {"retry-after": "inf"}) is None


@pytest.mark.parametrize("reply", [Reply(never=True), Reply("one " * 200, trickle=True)], ids=["silent", "trickle"])
def test_an_answer_must_be_whole_within_the_timeout(serve, reply):
    endpoint, engine = serve(lambda seen, nth: reply, timeout=0.2, retries=1)
    (answer,) = engine.generate(requests(1))
    assert answer.error == "gave up after 2 tries: no answer within 0.2 s"
    assert endpoint.seen[1].at - endpoint.seen[0].at < 10  # the trickle takes twenty


def test_an_endpoint_that_is_not_there_is_an_error_answer(serve):
    endpoint, engine = serve(retries=1)
    endpoint.shutdown()
    endpoint.server_close()
    (answer,) = engine.generate(requests(1))
    assert answer.finish == "error" and answer.error.startswith("gave up after 2 tries: Connection error")


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_refused_is_an_error_answer_and_not_asked_again(serve, status):
    bad = Reply(status=status, error={"message": "no image I can read", "param": "messages"})
    endpoint, engine = serve(lambda seen, nth: bad if "picture 1" in seen.question else told_apart(seen))
    good, refused, other = engine.generate(requests(3))
    assert (refused.finish, refused.error) == ("error", f"HTTP {status}: no image I can read")
    assert good.finish == other.finish == "stop" and len(endpoint.seen) == 3


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            Reply(status=401, error={"message": "wrong key"}),
            r"caption.openai.key_env=OPENAI_API_KEY: .* 401 \(wrong key",
        ),
        (
            Reply(status=403, error={"message": "not yours"}),
            r"caption.openai.key_env=OPENAI_API_KEY: .* 403 \(not yours",
        ),
        (Reply(status=402, error={"message": "pay"}), r"key_env=OPENAI_API_KEY: .* 402 \(pay\); expected credit"),
        (Reply(status=429, error={"message": "used up", "code": "insufficient_quota"}), "expected credit on the key"),
        (Reply(status=404, error={"message": "no such model"}), r"caption.openai.model=gpt-4o-mini: .*no such model"),
        (Reply(status=404, raw=b"nginx"), r"caption.openai.model=.*nginx.*ends in /v1"),
        (Reply(status=400, error={"message": "not 0", "param": "temperature"}), "it takes no such temperature"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Reply) else "",
)
def test_what_refuses_every_request_is_the_users_to_mend_and_stops_the_call(serve, reply, message):
    endpoint, engine = serve(lambda seen, nth: reply, concurrency=2)
    with pytest.raises(UserError, match=message) as caught:
        engine.generate(requests(40))
    assert "\n" not in str(caught.value)
    assert len(endpoint.seen) <= 4, "the others are not sent"


def test_a_fatal_answer_cancels_what_is_under_way_and_leaves_other_calls_alone(serve):
    both = threading.Event()

    def script(seen, nth):
        if "picture 1?" in seen.question:
            both.wait(20)
            return Reply(status=401, error={"message": "no"})
        return Reply(never=True) if "picture 0?" in seen.question else told_apart(seen)

    endpoint, engine = serve(script)
    fatal = Calling(engine, requests(2))
    endpoint.wait_for(2)
    assert engine.generate([request(7)])[0].finish == "stop"
    both.set()
    with pytest.raises(UserError, match="401"):
        fatal.outcome()
    assert engine.generate([request(8)])[0].finish == "stop"


def test_close_breaks_off_what_is_under_way_and_ends_every_thread(serve):
    before = set(threading.enumerate())
    endpoint, engine = serve(lambda seen, nth: Reply(never=True) if nth == 1 else told_apart(seen), concurrency=2)
    call = Calling(engine, requests(5))
    endpoint.wait_for(2)
    engine.close()
    with pytest.raises(RuntimeError, match="closed during this call"):
        call.outcome()
    ours = [t.name for t in set(threading.enumerate()) - before if "openai" in t.name or "asyncio" in t.name]
    assert ours == []
    with pytest.raises(RuntimeError, match="is closed"):
        engine.generate(requests(1))
    engine.close()


def test_close_does_not_wait_for_a_backoff(serve):
    endpoint, engine = serve(lambda seen, nth: Reply(status=429, headers={"Retry-After": "100"}))
    call = Calling(engine, requests(1))
    endpoint.wait_for(1)
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        call.outcome()


def test_a_bug_of_ours_is_not_taken_for_an_outcome(serve):
    _, engine = serve()
    with pytest.raises(TypeError):
        engine.generate([dataclasses.replace(request(1), temperature=object())])
