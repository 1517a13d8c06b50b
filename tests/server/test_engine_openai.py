"""The `openai` engine against a real HTTP server: what it sends, what it makes of answers, and who sees the key."""

import logging
import sys
import time
import traceback

import numpy as np
import pytest
import torch

from fedscale.errors import UserError
from fedscale.server.caption.engines import pictures
from fedscale.server.caption.engines.openai import OpenAIEngine
from fedscale.server.caption.engines.openai_chat import Chat
from tests.server.endpoint_support import KEY, Reply, serving, told_apart
from tests.server.engines_support import call_together, engine_config, image, request, requests


@pytest.fixture
def serve(monkeypatch):
    with serving(monkeypatch) as start:
        yield start


def test_the_request_is_a_chat_completion_with_the_image_before_the_first_question(serve):
    endpoint, engine = serve(caption={"max_new_tokens": 33}, model="the-model")
    history = (("What is it?", "A dog."), ("Which?", "A terrier."))
    (answer,) = engine.generate([request(1, question="And why?", history=history, temperature=0.7, seed=2**62 + 1)])
    (seen,) = endpoint.seen
    first, *rest = seen.body["messages"]
    assert [message["role"] for message in (first, *rest)] == ["user", "assistant", "user", "assistant", "user"]
    assert first["content"][1] == {"type": "text", "text": "What is it?"}
    assert [message["content"] for message in rest] == ["A dog.", "Which?", "A terrier.", "And why?"]
    told = {key: value for key, value in seen.body.items() if key != "messages"}
    assert told == {"model": "the-model", "temperature": 0.7, "seed": 2**62 + 1, "max_tokens": 33}
    assert seen.authorization == f"Bearer {KEY}"
    assert (answer.finish, answer.tokens, answer.error) == ("stop", 3, "") and answer.text.startswith("text ")


@pytest.mark.parametrize(
    ("base_url", "limit"),
    [
        ("https://api.openai.com/v1", "max_completion_tokens"),
        ("https://eu.api.openai.com/v1", "max_completion_tokens"),
        ("https://mine.openai.azure.com/openai/v1", "max_completion_tokens"),
        ("http://localhost:8000/v1", "max_tokens"),
        ("https://notopenai.com/v1", "max_tokens"),
    ],
)
def test_the_limit_of_tokens_has_the_name_that_the_endpoint_knows(base_url, limit):
    config = engine_config("openai", sections={"openai": {"base_url": base_url}}, max_new_tokens=5)
    body = Chat(config.caption, KEY).body(request(1), "data:")
    assert {key: body[key] for key in body if key.startswith("max_")} == {limit: 5}


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 31), (512, 512)])
def test_a_small_image_arrives_exactly(serve, height, width):
    endpoint, engine = serve()
    shown = image(3, height, width)
    engine.generate([request(1, image=shown)])
    assert endpoint.seen[0].url.startswith("data:image/png;base64,")
    assert np.array_equal(endpoint.seen[0].pixels(), shown.numpy())


def test_a_large_image_arrives_as_a_jpeg_with_its_colours_in_full(serve):
    endpoint, engine = serve()
    stripes = torch.tensor([[200, 40, 40], [40, 40, 200]], dtype=torch.uint8).repeat(600, 350, 1)  # a pixel wide each
    engine.generate([request(1, image=stripes)])
    assert endpoint.seen[0].url.startswith("data:image/jpeg;base64,")
    difference = endpoint.seen[0].pixels().astype(int) - stripes.numpy()
    assert difference.shape == (600, 700, 3) and np.abs(difference).mean() < 3


def test_questions_about_one_image_share_its_encoding(serve, monkeypatch):
    encoded = []
    monkeypatch.setattr(
        "fedscale.server.caption.engines.openai.data_url", lambda image: encoded.append(1) or pictures.data_url(image)
    )
    endpoint, engine = serve()
    shown = image(1)
    engine.generate([request(n, image=shown) for n in range(5)] + [request(9)])
    assert len(encoded) == 2 and len({seen.url for seen in endpoint.seen}) == 2


def test_no_more_than_concurrency_requests_are_under_way_over_all_calls(serve):
    def slowly(seen, nth):
        time.sleep(0.01)  # so that a request beyond the bound would be seen beside the others
        return told_apart(seen)

    endpoint, engine = serve(slowly, concurrency=3)
    first, second = call_together(engine, [requests(12), requests(12, temperature=0.5)])
    assert endpoint.most == 3
    assert [a.finish for a in first + second] == ["stop"] * 24 and len({a.text for a in first + second}) == 24


def test_as_many_calls_are_best_as_fill_the_slots_and_one_more(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for concurrency, calls in ((16, 2), (64, 2), (65, 3)):
        engine = OpenAIEngine(engine_config("openai", sections={"openai": {"concurrency": concurrency}}, batch_size=64))
        assert engine.in_flight == calls
        engine.close()


@pytest.mark.parametrize(
    ("reply", "text", "finish", "tokens", "error"),
    [
        (Reply(" a b "), "a b", "stop", 3, ""),
        (Reply("a b", finish="length"), "a b", "length", 3, ""),
        (Reply("", finish="stop"), "", "stop", 1, ""),
        (Reply("a", finish="content_filter"), "", "error", 0, "ended the text with finish_reason=content_filter"),
        (Reply("a", finish="tool_calls"), "", "error", 0, "ended the text with finish_reason=tool_calls"),
        (Reply("a", finish=None), "", "error", 0, "ended the text with finish_reason=None"),
        (Reply("", refusal="I can't\nhelp."), "", "error", 0, "the model refuses: I can't help."),
    ],
)
def test_how_a_text_ended(serve, reply, text, finish, tokens, error):
    endpoint, engine = serve(lambda seen, nth: reply)
    (answer,) = engine.generate(requests(1))
    assert (answer.text, answer.finish, answer.tokens) == (text, finish, tokens)
    assert error in answer.error and bool(error) == bool(answer.error)
    assert len(endpoint.seen) == 1


def test_without_usage_no_tokens_are_counted(serve):
    raw = b'{"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}'
    _, engine = serve(lambda seen, nth: Reply(raw=raw))
    assert engine.generate(requests(1))[0].tokens == 0


def test_a_tensor_that_is_no_image_is_an_error_answer_and_never_sent(serve):
    endpoint, engine = serve()
    good, empty, grey = engine.generate(
        [request(0), request(1, image=torch.zeros(0, 4, 3, dtype=torch.uint8)), request(2, image=torch.zeros(4, 4))]
    )
    assert good.finish == "stop" and len(endpoint.seen) == 1
    assert empty.error == "an image of uint8 [0, 4, 3]: expected uint8 [H, W, 3] with pixels"
    assert grey.finish == "error" and "float32 [4, 4]" in grey.error


def test_the_key_is_in_no_text_and_no_log(serve, caplog):
    caplog.set_level(logging.DEBUG)
    _, engine = serve(lambda seen, nth: Reply(status=401, error={"message": f"Incorrect API key: {KEY}."}))
    with pytest.raises(UserError, match=r"Incorrect API key: \(the key\)") as caught:
        engine.generate(requests(1))
    shown = "".join(traceback.format_exception(caught.value))
    _, engine = serve(lambda seen, nth: Reply(status=400, error={"message": f"bad {KEY}"}))
    (answer,) = engine.generate(requests(1))
    assert answer.error == "HTTP 400: bad (the key)"
    assert caplog.records and KEY not in shown + caplog.text + repr(vars(engine))


def test_a_short_dummy_key_does_not_garble_texts(serve, monkeypatch):
    monkeypatch.setenv("MY_KEY", "x")
    _, engine = serve(lambda seen, nth: Reply(status=400, error={"message": "max exceeded"}), key_env="MY_KEY")
    assert engine.generate(requests(1))[0].error == "HTTP 400: max exceeded"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "OPENAI_API_KEY is not set.*any word does"),
        ("  ", "is not set"),
        ("schlüssel", "has characters"),
        ("a\nb", "has"),
    ],
)
def test_a_missing_or_unusable_key_is_named_and_not_shown(monkeypatch, value, message):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(UserError, match=message) as caught:
        OpenAIEngine(engine_config("openai"))
    assert value is None or not value.strip() or value not in str(caught.value)


def test_a_base_url_without_its_scheme_is_named():
    with pytest.raises(UserError, match=r"caption.openai.base_url=localhost:8000/v1: expected http"):
        OpenAIEngine(engine_config("openai", sections={"openai": {"base_url": "localhost:8000/v1"}}))


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install 'mllm-fedscale\[openai\]'"):
        OpenAIEngine(engine_config("openai"))


def test_an_endpoint_that_is_not_there_is_one_line_at_once(monkeypatch):
    import socket

    from fedscale.server.caption.engines.reachable import check_reachable

    with socket.socket() as unused:  # bound, not listening: a port that nobody else takes meanwhile
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(
            UserError, match=r"base_url=http://127.0.0.1:\d+/v1: cannot be reached \(connection refused\)"
        ):
            check_reachable(url)
        monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
        monkeypatch.setenv("no_proxy", "")
        check_reachable(url)  # only the proxy knows
