"""Questions, turns, retries and seeds: what is asked depends on the image's key alone."""

import dataclasses

import pytest
import torch

from fedscale.config.schema import CaptionConfig, PromptsConfig
from fedscale.server.caption import prompts, quality
from fedscale.server.caption.captioner import Captioner, Item
from fedscale.server.caption.engines import Answer
from fedscale.session import Session
from tests.server.caption.support import FakeEngine

CONFIG = CaptionConfig(
    prompts=PromptsConfig(
        hint="They say {keyword}. ",
        description=("d1", "d2", "d3"),
        conversation=(("What?", "Where?", "Why?"),),
        reasoning=("r1", "r2"),
    )
)


def item(key: str, keyword: str | None = "grey_cat", **fields) -> Item:
    return Item(key, keyword, torch.zeros(2, 2, 3, dtype=torch.uint8), **fields)


def test_a_conversation_is_asked_turn_by_turn_with_the_answers_in_sight():
    engine = FakeEngine(Session(), answers={"k": lambda request: Answer(f"to {request.question}", "stop", 2)})
    config = dataclasses.replace(CONFIG, kinds=("conversation",))
    (row,) = Captioner(config, engine).rows([item("k")])
    assert row.turns("conversation") == (("What?", "to What?"), ("Where?", "to Where?"), ("Why?", "to Why?"))
    assert [len(request.history) for request in engine.requests] == [0, 1, 2]
    assert engine.requests[2].history == (("What?", "to What?"), ("Where?", "to Where?"))
    assert row.tokens == {"conversation": 6} and row.attempts == {"conversation": 1}


def test_a_conversation_that_breaks_off_is_not_ok_but_keeps_what_was_said():
    def told(request):
        return Answer("cut", "length", 9) if request.question == "Where?" else Answer("fine", "stop", 1)

    config = dataclasses.replace(CONFIG, kinds=("conversation",))
    (row,) = Captioner(config, FakeEngine(Session(), answers={"k": told})).rows([item("k")])
    assert row.status == "truncated"
    assert row.turns("conversation") == (("What?", "fine"), ("Where?", "cut"))


def test_the_question_depends_on_the_key_and_all_are_asked():
    keys = [f"{n:04d}" for n in range(60)]
    chosen = {key: prompts.questions(CONFIG, "description", key)[0] for key in keys}
    assert set(chosen.values()) == {"d1", "d2", "d3"}
    assert chosen == {key: prompts.questions(CONFIG, "description", key)[0] for key in reversed(keys)}
    other = dataclasses.replace(CONFIG, seed=8)
    assert chosen != {key: prompts.questions(other, "description", key)[0] for key in keys}


def test_the_keyword_is_a_hint_only_where_it_is_wanted_and_there():
    engine = FakeEngine(Session())
    config = dataclasses.replace(CONFIG, use_keyword=True, kinds=("conversation",))
    rows = Captioner(config, engine).rows([item("a"), item("b", keyword=None)])
    first = {request.key: request for request in engine.requests[:2]}
    assert first["a"].question == "They say grey cat. What?" and first["b"].question == "What?"
    assert [request.question for request in engine.requests if request.key == "a"][1:] == ["Where?", "Why?"]
    assert rows[0].questions["conversation"][0] == "What?", "training is not shown the hint"
    engine.requests.clear()
    Captioner(dataclasses.replace(config, use_keyword=False), engine).rows([item("a")])
    assert engine.requests[0].question == "What?"


def test_retries_climb_the_ladder_with_seeds_of_their_own():
    engine = FakeEngine(Session(), answers={"k": Answer("", "stop", 1)})
    config = dataclasses.replace(CONFIG, kinds=("description",), retry_temperatures=(0.3, 0.9))
    (row,) = Captioner(config, engine).rows([item("k")])
    assert [request.temperature for request in engine.requests] == [0.0, 0.3, 0.9]
    assert len({request.seed for request in engine.requests}) == 3
    assert (row.status, row.attempts) == ("empty", {"description": 3})


def test_only_what_failed_is_asked_again():
    def told(request):
        bad = request.kind == "reasoning" and request.temperature == 0
        return Answer("", "stop", 1) if bad else Answer("good", "stop", 1)

    engine = FakeEngine(Session(), answers={"k": told})
    config = dataclasses.replace(CONFIG, kinds=("description", "reasoning"))
    (row,) = Captioner(config, engine).rows([item("k"), item("l")][:1])
    assert row.status == "ok" and row.attempts == {"description": 1, "reasoning": 2}
    assert [request.kind for request in engine.requests] == ["description", "reasoning", "reasoning"]


def test_the_company_of_an_image_changes_nothing_about_its_requests():
    def asked(keys):
        engine = FakeEngine(Session())
        Captioner(CONFIG, engine).rows([item(key) for key in keys])
        return {(r.key, r.kind, len(r.history)): (r.question, r.seed, r.temperature) for r in engine.requests}

    alone, together = asked(["b"]), asked(["a", "b", "c"])
    assert alone == {place: what for place, what in together.items() if place[0] == "b"}


def test_images_that_are_none_keep_their_place():
    from fedscale.server.caption.rows import Row

    broken = Row("b", "decode_error", None, error="not an image")
    rows = Captioner(CONFIG, FakeEngine(Session())).rows([item("a"), Item("b", None, None, broken), item("c")])
    assert [row.key for row in rows] == ["a", "b", "c"] and rows[1] is broken


def test_the_template_engine_has_no_words_for_an_image_without_a_keyword():
    from fedscale.server.caption.engines.template import TemplateEngine

    rows = Captioner(CaptionConfig(engine="template"), TemplateEngine()).rows([item("a"), item("b", keyword=None)])
    assert [row.status for row in rows] == ["ok", "generation_error"] and "no crawl keyword" in rows[1].error
    assert rows[0].text("description") == "A photo of a grey cat."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat on a mat", False),
        ("no, no, no, no", False),
        ("very " * 8, True),
        ("the cat sat on the mat and " * 4, True),
        ("a red cat, a red dog, a red hen, a red fox, a red owl", False),
        ("It is round. " + "It is blue. " * 5, True),
        ("one two three four " * 3, False),
        ("", False),
    ],
)
def test_a_loop_is_a_phrase_said_four_times_in_a_row(text, expected):
    assert quality.loops(text) is expected


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Answer("fine", "stop", 1), "ok"),
        (Answer("fi", "length", 1), "truncated"),
        (Answer("", "stop", 1), "empty"),
        (Answer("", "length", 1), "empty"),
        (Answer("la " * 9, "stop", 9), "repeated"),
        (Answer("", "error", 0, "429"), "generation_error"),
    ],
)
def test_the_status_of_an_answer(answer, status):
    assert quality.status_of(answer) == status
