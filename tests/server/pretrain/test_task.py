"""Dynamic Weighted Distillation on a random language model of 16 dimensions: the losses, and what learns from them."""

import pytest
import torch
import torch.nn.functional as F

from fedscale.config.schema import LoraConfig, ModelConfig, PretrainConfig
from fedscale.errors import UserError
from fedscale.models import build_model
from fedscale.server.pretrain.task import Distillation, Whole, contrastive_loss
from fedscale.server.pretrain.text import IGNORED, TextEncoder, Tokens

TEACHER_DIM = 6


def tiny_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=30, max_position_embeddings=64, **sizes)).eval()


class LetterTokenizer:
    """One id a letter; 0 starts, 1 ends and pads."""

    pad_token_id, eos_token_id = None, 1

    def __call__(self, text: str | list[str]) -> dict[str, list]:
        if isinstance(text, list):
            return {"input_ids": [self(one)["input_ids"] for one in text]}
        return {"input_ids": [0, *(2 + (ord(c) - ord("a")) % 26 for c in text if c.isalpha())]}


def chat(question: str, *, history: tuple[tuple[str, str], ...]) -> str:
    return " ".join([word for turn in history for word in turn] + [question])


def make_task(dtype: torch.dtype = torch.float32, **settings) -> tuple[Distillation, tuple]:
    """`dtype`: what the language model is loaded as."""
    config = PretrainConfig(visual_tokens=3, **{"language_model": "frozen", **settings})
    torch.manual_seed(0)
    student = build_model(ModelConfig(width=4), 5)
    task = Distillation(student, tiny_llama().to(dtype), TEACHER_DIM, config).train()
    tokens = TextEncoder(LetterTokenizer(), chat, 16).encode(
        [(("what", "a cat"),), (("describe", "red"),), (("what", "it is a dog"),)]
    )
    return task, (torch.randn(3, 3, 8, 8), F.normalize(torch.randn(3, TEACHER_DIM), dim=-1), tokens)


def whole_of(tokens: Tokens) -> Whole:
    return Whole(len(tokens.ids), int((tokens.labels != IGNORED).sum()))


def gradient(module: torch.nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


def test_labels_are_the_answer_and_its_end_alone():
    encoder = TextEncoder(LetterTokenizer(), chat, 8)
    tokens = encoder.encode([(("xy", "c"),), (("x", "abc"),)])
    assert tokens.ids.tolist() == [[0, 25, 26, 4, 1, 1], [0, 25, 2, 3, 4, 1]]
    assert tokens.labels.tolist() == [[IGNORED] * 3 + [4, 1, IGNORED], [IGNORED] * 2 + [2, 3, 4, 1]]


def test_of_a_conversation_every_answer_is_learnt_and_no_question():
    tokens = TextEncoder(LetterTokenizer(), chat, 16).encode([(("xy", "c"), ("z", "ab"))])
    assert tokens.ids.tolist() == [[0, 25, 26, 4, 27, 2, 3, 1]]
    assert tokens.labels.tolist() == [[IGNORED] * 3 + [4, IGNORED, 2, 3, 1]]


def test_a_text_is_tokenised_once_though_it_comes_every_epoch():
    class Counting(LetterTokenizer):
        calls = 0

        def __call__(self, text):
            self.calls += 1
            return super().__call__(text)

    tokenizer, dialogues = Counting(), [(("xy", "c"),), (("x", "abc"),)]
    encoder = TextEncoder(tokenizer, chat, 16)
    first, calls = encoder.encode(dialogues), tokenizer.calls
    again = encoder.encode(dialogues[::-1])
    assert tokenizer.calls == calls > 0
    assert torch.equal(again.ids, first.ids.flip(0)) and torch.equal(again.labels, first.labels.flip(0))


def test_a_long_answer_is_cut_and_a_long_question_refused():
    encoder = TextEncoder(LetterTokenizer(), chat, 5)
    assert encoder.encode([(("xy", "abcdef"),)]).labels.tolist() == [[IGNORED] * 3 + [2, 3]]
    with pytest.raises(UserError, match=r"pretrain.max_text_tokens=3: the question 'xy' takes 3 tokens"):
        TextEncoder(LetterTokenizer(), chat, 3).check(["x", "xy"])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_losses_are_those_of_the_method(alpha):
    """Against the formulas written out token by token."""
    task, (images, teacher, tokens) = make_task(feature_weight=2.0)
    losses = task(images, teacher, tokens, alpha, whole_of(tokens))
    with torch.no_grad():
        h_f = task.student_projector(task.student.features(images))
        h_g = task.teacher_projector(teacher)
        h = alpha * h_f + (1 - alpha) * h_g
        total, count = 0.0, 0
        for row in range(3):
            length = int((tokens.labels[row] != IGNORED).nonzero().max()) + 1
            ids = tokens.ids[row, :length]
            inputs = torch.cat([h[row], task.embed(ids)])[None]
            log_p = task.language_model(inputs_embeds=inputs).logits[0].log_softmax(-1)
            for position in range(length):
                if tokens.labels[row, position] != IGNORED:
                    total -= float(log_p[3 + position - 1, ids[position]])
                    count += 1
        feature = float((1 - F.cosine_similarity(h_f, h_g, dim=-1)).mean())
    assert float(losses["lm"].detach()) == pytest.approx(total / count, rel=1e-4)
    assert float(losses["feature"].detach()) == pytest.approx(feature, rel=1e-4)
    assert float(losses["loss"].detach()) == pytest.approx(total / count + 2 * feature, rel=1e-4)


def test_alpha_moves_the_language_models_lesson_from_clips_projector_to_f():
    for alpha, student_learns, teacher_learns in ((0.0, False, True), (1.0, True, False), (0.5, True, True)):
        task, inputs = make_task()
        task(*inputs, alpha, whole_of(inputs[2]))["lm"].backward()
        assert (gradient(task.student) > 0) is student_learns
        assert (gradient(task.student_projector) > 0) is student_learns
        assert (gradient(task.teacher_projector) > 0) is teacher_learns


def test_the_feature_loss_pulls_f_to_clip_and_not_clip_to_f():
    task, inputs = make_task()
    task(*inputs, 0.5, whole_of(inputs[2]))["feature"].backward()
    assert gradient(task.student) > 0 and gradient(task.student_projector) > 0
    assert gradient(task.teacher_projector) == 0


@pytest.mark.parametrize(("how", "trained"), [("frozen", "none"), ("lora", "adapters"), ("full", "all")])
def test_the_language_model_is_frozen_adapted_or_trained(how, trained):
    task, inputs = make_task(language_model=how, lora=LoraConfig(rank=2))
    names = [name for name, parameter in task.language_model.named_parameters() if parameter.requires_grad]
    everything = [name for name, _ in task.language_model.named_parameters()]
    if trained == "all":
        assert names == everything
    elif trained == "none":
        assert not names and not task.language_model.training
    else:
        assert names and all("lora_" in name for name in names)
        assert not any("lm_head" in name for name in names)
    task(*inputs, 0.5, whole_of(inputs[2]))["loss"].backward()
    assert (gradient(task.language_model) > 0) is (trained != "none")


@pytest.mark.parametrize("how", ["frozen", "lora", "full"])
def test_of_a_language_model_in_bf16_what_is_trained_is_float32_and_the_rest_stays(how):
    task, inputs = make_task(torch.bfloat16, language_model=how, lora=LoraConfig(rank=2))
    for name, parameter in task.named_parameters():
        kept = "language_model." in name and not parameter.requires_grad
        assert parameter.dtype == (torch.bfloat16 if kept else torch.float32), name
    task(*inputs, 0.5, whole_of(inputs[2]))["loss"].backward()
    before = [p.detach().clone() for p in task.parameters()]
    torch.optim.AdamW(task.parameters(), lr=1e-4).step()
    pairs = [(old, new) for old, new in zip(before, task.parameters(), strict=True) if new.grad is not None]
    moved = sum(int(((old != new) & (new.grad != 0)).sum()) for old, new in pairs)
    assert moved > 0.99 * sum(int((new.grad != 0).sum()) for _, new in pairs)


def test_the_classifier_takes_no_part():
    task, inputs = make_task()
    task(*inputs, 0.5, whole_of(inputs[2]))["loss"].backward()
    assert gradient(task.student.classifier) == 0
    assert not any(p.requires_grad for p in task.student.classifier.parameters())


def test_the_contrastive_loss_is_lowest_for_the_right_pairs():
    torch.manual_seed(0)
    images, scale = torch.randn(8, 5), torch.tensor([2.0])
    matched = contrastive_loss(images, images, scale)
    assert matched < contrastive_loss(images, images.roll(1, 0), scale)
    logits = scale.exp() * F.normalize(images, dim=-1) @ F.normalize(images, dim=-1).T
    expected = -(logits.log_softmax(0).diag().sum() + logits.log_softmax(1).diag().sum()) / 2
    assert float(matched) == pytest.approx(float(expected))
    assert float(contrastive_loss(images, images, torch.tensor([50.0]))) < 1e-3, "the scale is capped, not infinite"


def test_the_contrastive_term_trains_f_and_its_scale_and_is_absent_without_a_weight():
    task, inputs = make_task(contrastive_weight=0.5)
    losses = task(*inputs, 0.5, whole_of(inputs[2]), F.normalize(torch.randn(3, TEACHER_DIM), dim=-1))
    assert float(losses["loss"].detach()) == pytest.approx(
        float((losses["lm"] + losses["feature"] + 0.5 * losses["contrastive"]).detach())
    )
    losses["contrastive"].backward()
    assert gradient(task.student) > 0 and task.logit_scale.shape == (1,) and task.logit_scale.grad is not None
    without, inputs = make_task()
    assert "contrastive" not in without(*inputs, 0.5, whole_of(inputs[2]))


def test_the_parts_of_a_step_add_up_to_its_mean_over_all_answer_tokens():
    """A short answer in one part, two longer ones in the other: a mean of the parts' means is another loss."""
    task, (images, teacher, tokens) = make_task()
    task.eval()
    with torch.no_grad():
        whole = whole_of(tokens)
        together = task(images, teacher, tokens, 0.5, whole)
        parts = []
        for rows in (slice(0, 1), slice(1, 3)):
            part = Tokens(tokens.ids[rows], tokens.labels[rows])
            parts.append((task(images[rows], teacher[rows], part, 0.5, whole), whole_of(part)))
    for name in ("lm", "feature", "loss"):
        assert float(sum(losses[name] for losses, _ in parts)) == pytest.approx(float(together[name]), rel=1e-5)
    means = [float(losses["lm"]) * whole.answer_tokens / part.answer_tokens for losses, part in parts]
    assert abs(sum(means) / 2 - float(together["lm"])) > 1e-3


def test_activation_checkpointing_gives_the_same_gradients_and_recomputes():
    found = {}
    for checkpointing in (False, True):
        task, inputs = make_task(activation_checkpointing=checkpointing)
        calls = []
        task.language_model.model.layers[0].self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        task(*inputs, 0.5, whole_of(inputs[2]))["loss"].backward()
        found[checkpointing] = [p.grad for p in task.parameters() if p.grad is not None]
        assert len(calls) == 1 + checkpointing
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found[False], found[True], strict=True))


def test_padding_changes_no_loss():
    task, (images, teacher, tokens) = make_task()
    task.eval()
    longer = Tokens(F.pad(tokens.ids, (0, 3), value=1), F.pad(tokens.labels, (0, 3), value=IGNORED))
    with torch.no_grad():
        whole = whole_of(tokens)
        first, second = task(images, teacher, tokens, 0.5, whole), task(images, teacher, longer, 0.5, whole)
    assert float(first["lm"]) == pytest.approx(float(second["lm"]), rel=1e-5)
