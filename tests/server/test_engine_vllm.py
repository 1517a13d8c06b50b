"""The `vllm` engine against a fake of vLLM's documented offline API; vLLM itself needs a GPU and a torch of its own."""

import sys
import threading
import types

import numpy as np
import pytest
import torch

from fedscale.errors import UserError
from fedscale.models.mllm import load_mllm
from fedscale.server.caption.engines import vllm_loop
from fedscale.server.caption.engines.vllm import VllmEngine
from fedscale.server.caption.engines.vllm_loop import Closed, EngineLoop
from tests.server.engines_support import LLAVA, Calling, engine_config, image, request, requests
from tests.server.vllm_support import END, Plan, RequestOutputKind, VLLMClientError, install


@pytest.fixture
def fake(monkeypatch):
    """Install a fake vLLM with a plan, and give the engine on it; all engines are closed with the test."""
    engines = []

    def start(plan=None, *, old=False, vllm=None, **caption):
        plan = plan or Plan()
        install(monkeypatch, plan, old)
        engines.append(VllmEngine(engine_config("vllm", sections={"vllm": vllm or {}}, **caption)))
        return plan, engines[-1]

    yield start
    for engine in engines:
        engine.close()


def test_the_settings_of_the_config_reach_vllm(fake):
    settings = {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.5, "max_model_len": 900}
    plan, _ = fake(vllm=settings)
    assert plan.settings.pop("model").endswith(LLAVA)
    assert plan.settings == {
        **settings, "revision": None, "dtype": "auto", "seed": 0, "limit_mm_per_prompt": {"image": 1, "video": 0}
    }  # fmt: skip


def test_without_a_limit_the_models_own_length_holds(fake):
    assert fake()[0].settings["max_model_len"] is None


def test_a_prompt_is_the_models_chat_form_with_the_pixels_as_they_are(fake):
    plan, engine = fake(max_new_tokens=33)
    shown = image(4, 5, 9)
    engine.generate([request(1, image=shown, question="What is it?", temperature=0.7, seed=2**62 + 1)])
    (prompt,), (params,) = plan.prompts, plan.params
    assert prompt["prompt"] == load_mllm(engine_config("vllm").teachers.mllm).prompt_text("What is it?")
    assert np.array_equal(np.asarray(prompt["multi_modal_data"]["image"]), shown.numpy())
    assert (params.temperature, params.seed, params.max_tokens, params.n) == (0.7, 2**62 + 1, 33, 1)
    assert params.output_kind is RequestOutputKind.FINAL_ONLY


def test_the_conversation_so_far_comes_before_the_question_and_the_image_before_all(fake):
    plan, engine = fake()
    engine.generate([request(1, question="And why?", history=(("What?", "A dog."), ("Which?", "A terrier.")))])
    text = plan.prompts[0]["prompt"]
    order = [text.index(part) for part in ("<image>", "What?", "A dog.", "Which?", "A terrier.", "And why?")]
    assert order == sorted(order) and text.count("<image>") == 1 and text.rstrip().endswith("ASSISTANT:")


@pytest.mark.parametrize(("adds_begin", "expected"), [(True, "Q"), (False, "<s>Q")])
def test_a_begin_token_is_not_doubled(fake, adds_begin, expected):
    class Tokenizer:
        bos_token, bos_token_id = "<s>", 1

        def __call__(self, text):
            return {"input_ids": [1] if adds_begin else []}

    _, engine = fake()
    engine._processor = types.SimpleNamespace(
        tokenizer=Tokenizer(), apply_chat_template=lambda turns, add_generation_prompt, tokenize: "<s>Q"
    )
    assert engine._prompt_text(request(1)) == expected


def test_questions_about_one_image_hold_one_picture(fake):
    plan, engine = fake()
    shown = image(1)
    engine.generate([request(n, image=shown) for n in range(3)] + [request(9)])
    assert len({id(prompt["multi_modal_data"]["image"]) for prompt in plan.prompts}) == 2


def test_answers_come_in_the_order_of_the_requests_and_not_in_that_of_their_ends(fake):
    _, engine = fake(Plan(max_num_seqs=3, after={"picture 0?": "picture 5?"}))
    answers = engine.generate(requests(6))
    _, alone = fake()
    assert [a.text for a in answers] == [alone.generate([one])[0].text for one in requests(6)]
    assert len({a.text for a in answers}) == 6


def test_the_second_call_fills_the_slots_that_the_tail_of_the_first_leaves(fake):
    # The first call cannot end before the second one's request has: one call after another would hang here.
    plan, engine = fake(Plan(max_num_seqs=2, after={"picture 0?": "picture 7?"}))
    first = Calling(engine, requests(2))
    assert plan.stepped.wait(20)
    (late,) = engine.generate([request(7)])
    assert late.finish == "stop" and [a.finish for a in first.outcome()] == ["stop", "stop"]
    together = [step for step in plan.steps if len(step) == 2 and "picture 0?" in step[0] and "picture 7?" in step[1]]
    assert together and max(map(len, plan.steps)) == 2


@pytest.mark.parametrize("reason", ["abort", "error", "repetition"])
def test_how_a_text_ended(fake, reason):
    _, engine = fake(Plan(ends={"picture 1?": "length", "picture 2?": reason}))
    whole, cut, broken = engine.generate(requests(3))
    assert (whole.finish, whole.tokens) == ("stop", len(whole.text.split()) + 1), "the end token counts"
    assert (cut.finish, cut.tokens) == ("length", len(cut.text.split()))
    assert (broken.text, broken.finish, broken.tokens) == ("", "error", 0) and f"finish_reason={reason}" in broken.error
    assert END not in (whole.text, cut.text) and whole.text == whole.text.strip() != ""


def test_max_new_tokens_cuts(fake):
    _, engine = fake(max_new_tokens=1)
    assert {(a.finish, a.tokens) for a in engine.generate(requests(4))} == {("length", 1)}


@pytest.mark.parametrize(
    ("error", "old"),
    [
        (ValueError("The decoder prompt (length 99)\nis longer than 9"), False),
        (ValueError("The decoder prompt (length 99) is longer than 9"), True),
        (VLLMClientError("The decoder prompt (length 99) is longer than 9"), False),
    ],
)
def test_a_request_that_vllm_refuses_is_an_error_answer_and_harms_no_other(fake, error, old):
    _, engine = fake(Plan(refusals={"picture 1?": error}), old=old)
    good, refused, other = engine.generate(requests(3))
    assert (refused.text, refused.finish, refused.tokens) == ("", "error", 0)
    assert refused.error == "The decoder prompt (length 99) is longer than 9"
    assert good.finish == other.finish == "stop"
    assert engine.generate(requests(1))[0] == good


def test_a_tensor_that_is_no_image_is_an_error_answer(fake):
    plan, engine = fake()
    good, bad = engine.generate([request(0), request(1, image=torch.zeros(0, 4, 3, dtype=torch.uint8))])
    assert good.finish == "stop" and "expected uint8 [H, W, 3]" in bad.error and len(plan.prompts) == 1


def test_a_conversation_that_the_template_does_not_take_is_an_error_answer(fake):
    _, engine = fake()
    engine._processor.chat_template = (
        "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}<image>"
    )
    good, bad = engine.generate([request(0), request(1, history=(("What?", "A dog."),))])
    assert good.finish == "stop" and bad.error == "the chat template: one turn only"


def test_sampling_that_vllm_does_not_know_is_an_error_answer(fake):
    _, engine = fake()
    good, bad = engine.generate([request(0), request(1, temperature=2.5)])
    assert good.finish == "stop" and "temperature must be in [0, 2]" in bad.error


def test_all_refused_leaves_nobody_waiting(fake):
    _, engine = fake(Plan(refusals={"picture": ValueError("no")}))
    for _ in range(2):
        assert [a.error for a in engine.generate(requests(3))] == ["no"] * 3


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), torch.OutOfMemoryError("full"), SystemExit(1)])
def test_what_the_engine_dies_of_reaches_every_call_now_and_later(fake, error):
    plan, engine = fake(Plan(step_error=error, dies_when=2, after={"picture": "never"}))
    first = Calling(engine, requests(1))
    assert plan.stepped.wait(20)
    second = Calling(engine, [request(5)])
    for call in (first, second, Calling(engine, requests(2))):
        with pytest.raises(type(error), match=str(error)):
            call.outcome()
    assert plan.shut_down == 1
    engine.close()


def test_an_error_that_is_no_refusal_ends_the_engine_and_no_call_hangs(fake):
    _, engine = fake(Plan(refusals={"picture 1?": RuntimeError("the socket broke")}))
    with pytest.raises(RuntimeError, match="the socket broke"):
        engine.generate(requests(3))


def test_close_frees_who_waits_and_ends_thread_and_engine_once(fake):
    plan, engine = fake(Plan(after={"picture": "never"}))
    call = Calling(engine, requests(2))
    assert plan.stepped.wait(20)
    engine.close()
    engine.close()
    with pytest.raises(Closed):
        call.outcome()
    with pytest.raises(Closed):
        engine.generate(requests(1))
    assert plan.shut_down == 1
    assert "vllm-engine" not in {thread.name for thread in threading.enumerate()}


def test_close_does_not_wait_for_ever_on_an_engine_that_hangs(monkeypatch):
    monkeypatch.setattr(vllm_loop, "CLOSE_SECONDS", 0.05)
    inside, hold = threading.Event(), threading.Event()

    class Hanging:
        def add_request(self, name, prompt, params):
            inside.set()
            hold.wait(10)

    loop = EngineLoop(Hanging, (ValueError,))
    loop.submit({}, None)
    assert inside.wait(20)
    loop.close()
    assert loop._thread.is_alive() and not hold.is_set()
    hold.set()


def test_settings_that_vllm_does_not_take_are_the_users_to_mend(fake):
    for error in (ValueError("320 tokens do not fit\ninto the KV cache"), VLLMClientError("320 tokens do not fit")):
        with pytest.raises(UserError, match=r"teachers\.mllm\.model=.*320 tokens do not fit.*caption\.vllm") as caught:
            fake(Plan(build_error=error))
        assert "\n" not in str(caught.value)


def test_a_systems_error_while_building_passes(fake):
    with pytest.raises(RuntimeError, match="no GPU"):
        fake(Plan(build_error=RuntimeError("no GPU")))


def test_a_model_that_is_nowhere_is_the_users_to_mend(monkeypatch, tmp_path):
    install(monkeypatch, Plan())
    with pytest.raises(UserError, match=r"teachers\.mllm\.model"):
        VllmEngine(engine_config("vllm", model=str(tmp_path / "none")))


def test_a_model_without_a_chat_template_is_the_users_to_mend(monkeypatch):
    install(monkeypatch, Plan())
    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda *a, **k: types.SimpleNamespace())
    with pytest.raises(UserError, match=r"teachers\.mllm\.model=.*no chat template"):
        VllmEngine(engine_config("vllm"))


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"pip install 'mllm-fedscale\[vllm\]'"):
        VllmEngine(engine_config("vllm"))


def test_two_calls_are_best_under_way():
    assert VllmEngine.in_flight == 2
