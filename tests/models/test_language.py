"""The language side of pretraining: the MLLM's own language model, or any causal one by name."""

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from fedscale.config import overlaid
from fedscale.config.schema import Config
from fedscale.errors import UserError
from fedscale.models.language import LanguageSide, load_language_side
from fedscale.models.mllm import load_mllm
from fedscale.runs import stage_inputs
from fedscale.server.pretrain.text import IGNORED, TextEncoder
from fedscale.teachers.words import word_tokenizer

TEXTS = ["What is it? a star. Why? it has points. USER: ASSISTANT: user assistant <| |>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama(vocabulary: int) -> Any:
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **SMALL))


def gpt2(vocabulary: int) -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, n_positions=64))


def bert(vocabulary: int) -> Any:
    return BertLMHeadModel(BertConfig(vocab_size=vocabulary, initializer_range=0.5, **SMALL))


def saved(folder: Path, build: Any = llama, template: str | None = None) -> PreTrainedTokenizerFast:
    torch.manual_seed(0)
    tokenizer = word_tokenizer(TEXTS)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    build(len(tokenizer)).save_pretrained(folder)
    return tokenizer


def config(lm: Path | str, **settings: Any) -> Config:
    teachers = {"mllm": {"model": "teachers/shapes/llava"}, "lm": {"model": str(lm), **settings}}
    return overlaid(Config(), {"teachers": teachers})


def answers(side: LanguageSide, dialogue: tuple[tuple[str, str], ...]) -> str:
    """What the labels of a dialogue hold."""
    tokens = TextEncoder(side.tokenizer, side.chat_form, 64).encode([dialogue])
    return side.tokenizer.decode(tokens.labels[tokens.labels != IGNORED])


@pytest.mark.parametrize("build", [llama, gpt2])
def test_a_language_model_is_loaded_from_a_folder_as_it_was_saved(tmp_path: Path, build: Any) -> None:
    saved(tmp_path, build)
    side = load_language_side(config(tmp_path))
    torch.manual_seed(0)
    expected = build(len(side.tokenizer)).eval()
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        logits = side.model(inputs_embeds=side.model.get_input_embeddings()(ids), use_cache=False).logits
        torch.testing.assert_close(logits, expected(input_ids=ids).logits)
    assert not side.model.training and next(side.model.parameters()).dtype == torch.float32


def test_without_a_template_questions_have_the_plain_form(tmp_path: Path) -> None:
    saved(tmp_path)
    side = load_language_side(config(tmp_path))
    assert side.chat_form("What is it?", history=()) == "USER: What is it? ASSISTANT:"
    written = side.chat_form("Why?", history=(("What is it?", "a star."),))
    assert written == "USER: What is it? ASSISTANT: a star. USER: Why? ASSISTANT:"
    dialogue = (("What is it?", "a star."), ("Why?", "it has points."))
    assert answers(side, dialogue) == " a star. it has points.</s>"


def test_a_template_of_the_tokenizers_is_used_and_its_start_token_comes_once(tmp_path: Path) -> None:
    saved(tmp_path, template=TEMPLATE)
    side = load_language_side(config(tmp_path))
    written = side.chat_form("Why?", history=(("What is it?", "a star."),))
    assert written == "<|user|> What is it? <|assistant|> a star. <|user|> Why? <|assistant|>"
    assert side.tokenizer(written)["input_ids"].count(side.tokenizer.bos_token_id) == 1
    assert answers(side, (("What is it?", "a star."), ("Why?", "it has points."))) == " a star. it has points.</s>"


def test_no_name_means_the_mllms_own_language_model_in_its_chat_form() -> None:
    side, mllm = load_language_side(config("")), load_mllm(config("").teachers.mllm)
    assert side.chat_form("Why?", history=()) == mllm.prompt_text("Why?", with_image=False)
    own, _ = mllm.language_model()
    for name, tensor in own.state_dict().items():
        torch.testing.assert_close(side.model.state_dict()[name], tensor)


@pytest.mark.parametrize("named", [True, False])
def test_weights_may_wait_in_host_memory_in_the_dtype_for_the_device(tmp_path: Path, monkeypatch, named: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    saved(tmp_path)
    side = load_language_side(config(tmp_path if named else ""), "meta", "cpu")  # meta: as little the CPU as a GPU
    assert {(p.device.type, p.dtype) for p in side.model.parameters()} == {("cpu", torch.bfloat16)}


def test_an_mllm_that_captioning_spreads_over_gpus_is_in_one_piece_for_pretraining(monkeypatch) -> None:
    asked: list[dict[str, Any]] = []
    inner = AutoModelForImageTextToText.from_pretrained

    def recorded(source: str, **settings: Any) -> Any:
        asked.append(settings)
        pieces = {"": "cpu"} if settings.get("device_map") else None
        whole = inner(source, **{**settings, "device_map": None})
        return accelerate.dispatch_model(whole, pieces, main_device="cpu", force_hooks=True) if pieces else whole

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", recorded)
    spread = overlaid(config(""), {"teachers": {"mllm": {"device_map": "auto"}}})
    side = load_language_side(spread)
    assert len(asked) == 1
    assert not any(hasattr(module, "_hf_hook") for module in side.model.modules())
    assert load_mllm(spread.teachers.mllm).model._hf_hook, "as captioning loads it"


def test_an_encoder_that_sees_the_answer_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, bert)
    with pytest.raises(UserError, match=r"teachers\.lm\.model=.*: looks at the tokens that it is to predict"):
        load_language_side(config(tmp_path))


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"teachers\.lm\.model=.*: its tokenizer has no end token"):
        load_language_side(config(tmp_path))


def test_a_template_that_refuses_a_conversation_is_one_line(tmp_path: Path) -> None:
    saved(tmp_path, template="{{ raise_exception('no\nconversations') }}")
    with pytest.raises(UserError, match=r"its chat template refuses a conversation \(no conversations\)"):
        load_language_side(config(tmp_path))


def test_a_folder_without_a_model_and_a_path_that_is_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teachers\.lm\.model=.*holds no config\.json"):
        load_language_side(config(tmp_path))
    with pytest.raises(UserError, match=r"teachers\.lm\.model=.*no such folder"):
        load_language_side(config(tmp_path / "absent"))


def test_the_language_model_is_an_input_of_pretraining_alone_and_only_where_one_is_named() -> None:
    own, other = config(""), config("some/model")
    assert "lm" not in stage_inputs(own, "pretrain")
    assert stage_inputs(other, "pretrain")["lm"]["model"] == "some/model"
    assert stage_inputs(other, "caption") == stage_inputs(own, "caption")
    assert stage_inputs(other, "align")["teachers"] == stage_inputs(own, "align")["teachers"]
