import accelerate
import pytest
import torch
from transformers import AutoModelForImageTextToText

from fedscale import device
from fedscale.config import Config
from fedscale.config.schema import CaptionConfig, MllmConfig
from fedscale.data.shapes import render
from fedscale.errors import UserError
from fedscale.models.mllm import Mllm, load_mllm
from fedscale.server.caption.engines import Request
from fedscale.server.caption.engines.hf import HfEngine

QUESTIONS = {"description": "Describe this image in detail.", "conversation": "What is the main object in this image?"}


@pytest.fixture(scope="module")
def mllm():
    return load_mllm(MllmConfig(model="teachers/shapes/llava"))


@pytest.fixture
def engine(mllm):
    return HfEngine(Config(caption=CaptionConfig(batch_size=3, max_new_tokens=40)), mllm)


@pytest.fixture(scope="module")
def requests():
    images = [torch.from_numpy(render(5, label, 0).image) for label in range(4)]
    return [
        Request(f"{key}", kind, image, question)
        for key, image in enumerate(images)
        for kind, question in QUESTIONS.items()
    ]


def test_answers_come_in_the_requests_order_and_are_the_models_own(engine, mllm, requests):
    answers = engine.generate(requests)
    for request, answer in zip(requests, answers, strict=True):
        [alone] = mllm.generate(request.image[None], [request.question], 40)
        assert (answer.text, answer.finish, answer.tokens) == (alone.text, "stop", alone.tokens)
        assert answer.text == answer.text.strip() != "" and not answer.error
    assert engine.generate(requests[::-1]) == answers[::-1]


def test_a_text_is_cut_at_the_configs_limit(mllm, requests):
    answers = HfEngine(Config(caption=CaptionConfig(max_new_tokens=2)), mllm).generate(requests)
    assert {(answer.finish, answer.tokens) for answer in answers} == {("length", 2)}


def test_history_comes_before_the_question(engine, mllm, requests):
    first = requests[1]
    follow_up = Request("0", "conversation", first.image, "Why?", history=((first.question, "a hexagon."),))
    text = mllm.prompt_text("Why?", history=follow_up.history)
    assert text == f"USER: <image>\n{first.question} ASSISTANT: a hexagon. USER: Why? ASSISTANT:"
    [answer] = engine.generate([follow_up])
    inputs = mllm.processor(images=[first.image.permute(2, 0, 1)], text=[text], return_tensors="pt")
    out = mllm.model.generate(**inputs, do_sample=False, max_new_tokens=40)[0, inputs["input_ids"].shape[1] :]
    assert answer.text == mllm.tokenizer.decode(out, skip_special_tokens=True).strip() and answer.tokens == len(out)


def test_temperature_and_seed_are_each_requests_own(engine, requests):
    one = requests[0]
    hot = [Request(one.key, one.kind, one.image, one.question, temperature=2.0, seed=seed) for seed in (1, 2**62, 1)]
    greedy, first, other, again = engine.generate([one, *hot])
    assert greedy == engine.generate([one])[0]
    assert first == again != other and first != greedy


def test_what_is_wrong_with_a_request_is_its_own_answer(engine, mllm, requests, monkeypatch):
    from jinja2 import TemplateError

    inner = mllm.prompt_text

    def picky(question, *args, **kwargs):
        if question == "no":
            raise TemplateError("roles must alternate\nat line 3")
        return inner(question, *args, **kwargs)

    expected = engine.generate(requests)
    monkeypatch.setattr(mllm, "prompt_text", picky)
    bad = [
        Request("a", "description", torch.zeros(3, 0, 3, dtype=torch.uint8), "Describe this image in detail."),
        Request("b", "description", requests[0].image, "no"),
        Request("c", "description", requests[0].image, "What is <image>?"),
    ]
    answers = engine.generate([bad[0], *requests[:3], bad[1], *requests[3:], bad[2]])
    assert answers[1:4] + answers[5:-1] == expected
    errors = [answers[0], answers[4], answers[-1]]
    assert {(answer.finish, answer.text, answer.tokens) for answer in errors} == {("error", "", 0)}
    assert all(answer.error and "\n" not in answer.error for answer in errors)
    assert "roles must alternate" in answers[4].error


def test_a_closed_engine_holds_no_model_and_answers_nothing(mllm, requests):
    engine = HfEngine(Config(), mllm)
    engine.generate(requests[:1])
    engine.close()
    engine.close()
    assert mllm.generator.images.bytes == 0
    with pytest.raises(AssertionError, match="closed"):
        engine.generate(requests)


def test_a_device_map_places_the_model_and_nothing_moves_it_afterwards(engine, requests, monkeypatch):
    asked = []
    inner = AutoModelForImageTextToText.from_pretrained

    def recorded(source, **settings):
        asked.append(settings)
        model = inner(source, **settings)
        monkeypatch.setattr(type(model), "to", None)
        return model

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", recorded)
    placed = load_mllm(MllmConfig(model="teachers/shapes/llava", device_map="auto"), "cpu")
    assert asked[0]["device_map"] == "auto"
    config = Config(caption=CaptionConfig(batch_size=3, max_new_tokens=40))
    assert HfEngine(config, placed).generate(requests) == engine.generate(requests)


def test_a_model_in_pieces_gives_the_same_answers(engine, requests):
    """As `device_map` leaves it: hooks that carry tensors to each piece's device, here all the same one."""
    whole = load_mllm(MllmConfig(model="teachers/shapes/llava"))
    pieces = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "lm_head": "cpu"}
    pieces |= {f"model.language_model.{name}": "cpu" for name in ("embed_tokens", "norm", "rotary_emb")}
    pieces |= {f"model.language_model.layers.{number}": "cpu" for number in range(2)}
    model = accelerate.dispatch_model(whole.model, pieces, main_device="cpu", force_hooks=True)
    config = Config(caption=CaptionConfig(batch_size=3, max_new_tokens=40))
    answers = HfEngine(config, Mllm(model, whole.processor)).generate(requests)
    assert answers == engine.generate(requests)


@pytest.mark.parametrize(
    ("environment", "visible", "expected"),
    [
        ({}, 1, "cuda"),
        ({"LOCAL_RANK": "3"}, 1, "cuda"),  # the launcher has given it one
        ({}, 8, "cuda:0"),
        ({"LOCAL_RANK": "3"}, 8, "cuda:3"),
        ({"SLURM_LOCALID": "5"}, 4, "cuda:1"),
        ({"LOCAL_RANK": "2", "SLURM_LOCALID": "0"}, 4, "cuda:2"),
    ],
)
def test_each_worker_of_a_host_has_a_gpu_of_its_own(monkeypatch, environment, visible, expected):
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    assert device.pick_device(Config()) == torch.device(expected)
    assert device.pick_device(Config(device="cpu")) == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device=cuda"):
        device.pick_device(Config(device="cuda"))
    assert device.pick_device(Config()) == torch.device("cpu")
