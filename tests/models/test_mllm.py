import pytest
import torch

from fedscale.config.schema import MllmConfig
from fedscale.data.shapes import CLASSES, render
from fedscale.errors import UserError
from fedscale.models.mllm import load_mllm

QUESTION = "What is the main object in this image?"


@pytest.fixture(scope="module")
def mllm():
    return load_mllm(MllmConfig(model="teachers/shapes/llava"))


@pytest.fixture(scope="module")
def images():
    return torch.stack([torch.from_numpy(render(5, label, 0).image) for label in range(6)])


def test_the_prompt_has_llavas_form(mllm):
    assert mllm.prompt_text(QUESTION) == f"USER: <image>\n{QUESTION} ASSISTANT:"
    assert mllm.prompt_text(QUESTION, with_image=False) == f"USER: {QUESTION} ASSISTANT:"


def test_the_image_is_in_the_first_question_of_a_conversation_alone(mllm):
    history = [("What is it?", "a star."), ("Why?", "it has points.")]
    turns = "What is it? ASSISTANT: a star. USER: Why? ASSISTANT: it has points. USER: How many? ASSISTANT:"
    assert mllm.prompt_text("How many?", history=history) == f"USER: <image>\n{turns}"
    assert mllm.prompt_text("How many?", with_image=False, history=history) == f"USER: {turns}"


def test_answers_end_by_themselves_or_are_cut_at_the_limit(mllm, images):
    whole = mllm.generate(images, [QUESTION] * 6, max_new_tokens=20)
    assert all(answer.finish == "stop" and answer.text.endswith(".") for answer in whole)
    cut = mllm.generate(images, [QUESTION] * 6, max_new_tokens=2)
    assert all(answer.finish == "length" and answer.tokens == 2 for answer in cut)
    assert all(long.text.startswith(short.text) for long, short in zip(whole, cut, strict=True))


def test_an_answer_does_not_depend_on_the_batch_it_is_in(mllm, images):
    questions = [QUESTION, "Describe this image in detail."] * 3
    together = mllm.generate(images, questions, max_new_tokens=30)
    alone = [mllm.generate(images[i : i + 1], [questions[i]], max_new_tokens=30)[0] for i in range(6)]
    assert together == alone


def test_sampling_is_seeded_and_leaves_the_global_generator_alone(mllm, images):
    before = torch.random.get_rng_state()
    draws = [mllm.generate(images, [QUESTION] * 6, 20, temperature=3.0, seed=seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert torch.equal(before, torch.random.get_rng_state())


def test_class_log_likelihoods_are_those_of_the_whole_answers(mllm, images):
    names = ["circle", "arrow", "four corners"]  # of different lengths
    scores = mllm.class_log_likelihoods(images, QUESTION, names)
    for column, answer in enumerate([" a circle.", " an arrow.", " a four corners."]):
        tokenizer = mllm.tokenizer
        ids = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        inputs = mllm.processor(
            images=list(images.permute(0, 3, 1, 2)),
            text=[mllm.prompt_text(QUESTION) + answer + tokenizer.eos_token] * len(images),
            return_tensors="pt",
        )
        logits = mllm.model(**inputs).logits[:, -len(ids) - 1 : -1].log_softmax(-1)
        expected = logits.gather(-1, torch.tensor(ids).expand(len(images), -1)[..., None])[..., 0].sum(-1)
        torch.testing.assert_close(scores[:, column], expected, atol=1e-4, rtol=1e-4)


def test_classes_are_scored_alike_in_one_or_several_parts(mllm, images, monkeypatch):
    whole = mllm.class_log_likelihoods(images, QUESTION, CLASSES)
    monkeypatch.setattr("fedscale.models.mllm.MAX_ROWS", 18)
    torch.testing.assert_close(mllm.class_log_likelihoods(images, QUESTION, CLASSES), whole, atol=1e-4, rtol=1e-4)


def test_images_are_encoded_once_however_many_parts_the_classes_make(mllm, images, monkeypatch):
    monkeypatch.setattr("fedscale.models.mllm.MAX_ROWS", 18)  # three classes at once
    encoded = []
    hook = mllm.model.model.vision_tower.register_forward_hook(lambda tower, inputs, out: encoded.append(len(out[0])))
    mllm.class_log_likelihoods(images, QUESTION, CLASSES)
    hook.remove()
    assert len(CLASSES) > 3 and encoded == [len(images)]


def test_the_language_model_alone_is_the_one_inside(mllm):
    language, tokenizer = mllm.language_model()
    ids = tokenizer(mllm.prompt_text(QUESTION, with_image=False), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        alone = language(inputs_embeds=language.get_input_embeddings()(ids)).logits
        torch.testing.assert_close(alone, mllm.model(input_ids=ids).logits)
    assert not any("vision" in name for name, _ in language.named_parameters())


def test_a_folder_without_a_model_and_a_path_that_is_not_there_are_named(tmp_path):
    with pytest.raises(UserError, match=r"teachers\.mllm\.model=.*holds no config\.json"):
        load_mllm(MllmConfig(model=str(tmp_path)))
    with pytest.raises(UserError, match=r"no such folder.*offline_teachers\.yaml"):
        load_mllm(MllmConfig(model=str(tmp_path / "absent")))


def test_no_network_is_one_line_that_names_the_remedies(monkeypatch):
    from transformers import AutoProcessor

    def unreachable(*args, **kwargs):
        raise OSError("We couldn't connect to the hub\nand so on")

    monkeypatch.setattr(AutoProcessor, "from_pretrained", unreachable)
    with pytest.raises(UserError) as error:
        load_mllm(MllmConfig())
    assert "\n" not in str(error.value)
    assert "fedscale fetch" in str(error.value) and "configs/overlays/offline_teachers.yaml" in str(error.value)
