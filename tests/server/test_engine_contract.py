"""What every caption engine keeps to, each tested in the same words."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from fedscale.server.caption.engines import Answer, Engine, Request, make_engine
from tests.server.endpoint_support import Endpoint
from tests.server.engines_support import call_together, engine_config, image, request, requests
from tests.server.vllm_support import Plan, install

NO_PIXELS = torch.zeros(0, 4, 3, dtype=torch.uint8)


@dataclass
class Case:
    """An engine, and whether it looks at images (one that does not cannot be given a bad one)."""

    engine: Engine
    sees: bool


def _hf(monkeypatch) -> Engine:
    return make_engine(engine_config("hf", max_new_tokens=8, batch_size=4))


def _vllm(monkeypatch) -> Engine:
    install(monkeypatch, Plan(max_num_seqs=3))
    return make_engine(engine_config("vllm", max_new_tokens=8))


def _template(monkeypatch) -> Engine:
    return make_engine(engine_config("template"))


@pytest.fixture(params=["template", "hf", "openai", "vllm"])
def case(request, monkeypatch):
    if request.param == "openai":
        endpoint = Endpoint()
        monkeypatch.setenv("OPENAI_API_KEY", "any-word")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        config = engine_config("openai", sections={"openai": {"base_url": endpoint.url, "concurrency": 3}})
        made, ends = make_engine(config), [endpoint.end]
    else:
        build: dict[str, Callable] = {"template": _template, "hf": _hf, "vllm": _vllm}
        made, ends = build[request.param](monkeypatch), []
    yield Case(made, request.param != "template")
    for end in (made.close, *ends):
        end()


def valid(answer: Answer) -> bool:
    if answer.finish == "error":
        return not answer.text and bool(answer.error) and "\n" not in answer.error
    return answer.finish in ("stop", "length") and answer.tokens >= 0 and not answer.error


def test_one_answer_a_request_in_their_order(case):
    asked = requests(7)
    answers = case.engine.generate(asked)
    assert len(answers) == 7 and all(valid(answer) and answer.finish != "error" for answer in answers)
    assert case.engine.generate(asked[::-1]) == answers[::-1]


def test_an_empty_call_gives_no_answers(case):
    assert case.engine.generate([]) == []


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_equal_requests_give_equal_answers_whatever_the_company(case, temperature):
    one = request(3, temperature=temperature, seed=11)
    (alone,) = case.engine.generate([one])
    company = [request(n, temperature=0.5 * (n % 2), seed=n, image=image(n, 8 + 4 * n, 20)) for n in range(4)]
    among = case.engine.generate([*company, one, request(9), replace(one, key="another")])
    assert among[4] == among[6] == alone


def test_as_many_calls_as_it_says_work_at_once(case):
    assert case.engine.in_flight >= 1
    calls: list[list[Request]] = [
        [request(10 * call + n) for n in range(3)] for call in range(case.engine.in_flight)
    ]  # fmt: skip
    assert call_together(case.engine, calls) == [case.engine.generate(asked) for asked in calls]


def test_a_conversation_goes_on_from_its_history(case):
    answers = case.engine.generate([request(1), request(1, history=(("What is it?", "A circle."), ("Sure?", "Yes.")))])
    assert all(valid(answer) and answer.finish != "error" for answer in answers)


def test_questions_may_share_an_image_and_images_may_differ_in_size(case):
    shared = image(1)
    asked = [request(1, image=shared), request(2, image=shared), request(3, image=image(3, 33, 12))]
    together = case.engine.generate(asked)
    assert together == [case.engine.generate([one])[0] for one in asked]


def test_a_bad_request_harms_no_other(case):
    before = case.engine.generate(requests(3))
    answers = case.engine.generate([request(0), request(1, image=NO_PIXELS), request(2)])
    assert (answers[0], answers[2]) == (before[0], before[2])
    assert valid(answers[1]) and (answers[1].finish == "error") is case.sees


def test_closing_twice_is_fine(case):
    case.engine.generate(requests(1))
    case.engine.close()
    case.engine.close()
