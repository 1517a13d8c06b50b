import random

import pytest
import torch
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    MistralConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.llava_next.image_processing_llava_next import LlavaNextImageProcessor

from fedscale.config.schema import MllmConfig
from fedscale.data.shapes import render
from fedscale.models.generation import Generator, Prompt, vision
from fedscale.models.generation.support import against
from fedscale.models.mllm import Mllm, load_mllm

MODEL = MllmConfig(model="teachers/shapes/llava")
QUESTIONS = (
    "What is the main object in this image?",
    "Describe this image in detail.",
    "What is the main object in this image, and which visible features tell so?",
)


@pytest.fixture(scope="module")
def mllm():
    """The trained one that ships, in double precision: no answer hangs on the rounding of a batch."""
    mllm = load_mllm(MODEL)
    mllm.model.double()
    return mllm


@pytest.fixture
def generator(mllm):
    return Generator(mllm.model, mllm.processor, mllm.device)


@pytest.fixture(scope="module")
def images():
    return [torch.from_numpy(render(5, label, 0).image) for label in range(6)]


def prompts_of(mllm, images, **settings):
    """Three questions an image, every other image's asked as the second turn of a conversation."""
    settings = {"max_new_tokens": 30} | settings
    return [
        Prompt(image, mllm.prompt_text(question, history=[("Why?", "a square.")] * (number % 2)), **settings)
        for number, image in enumerate(images)
        for question in QUESTIONS
    ]


def bare(mllm, prompt):
    """The text and the number of tokens by `model.generate`, one prompt alone."""
    inputs = mllm.processor(images=[prompt.image.permute(2, 0, 1)], text=[prompt.text], return_tensors="pt")
    inputs = inputs.to(mllm.device, dtype=mllm.model.dtype)
    out = mllm.model.generate(**inputs, do_sample=False, max_new_tokens=prompt.max_new_tokens)
    ids = out[0, inputs["input_ids"].shape[1] :]
    return mllm.tokenizer.decode(ids, skip_special_tokens=True).strip(), len(ids)


def random_mllm(text_config, endless=True):
    """A LLaVA of random weights behind the shipped processor; `endless` has no end token, only limits."""
    shipped = LlavaConfig.from_pretrained("fedscale/teachers/shapes/llava")
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=shipped.vision_config,
        text_config=text_config,
        image_token_index=shipped.image_token_id,
        image_seq_length=shipped.image_seq_length,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = LlavaForConditionalGeneration(config).double()
    model.generation_config.eos_token_id = None if endless else 2
    return Mllm(model, AutoProcessor.from_pretrained("fedscale/teachers/shapes/llava"), torch.device("cpu"))


def small(kind, **settings):
    return kind(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        **settings,
    )


@pytest.mark.parametrize("slots", [1, 3, 7, 64])
def test_greedy_answers_are_those_of_generate_whatever_the_number_of_slots(mllm, generator, images, slots):
    prompts = prompts_of(mllm, images)
    answers = generator.generate(prompts, slots)
    assert [(answer.text, answer.tokens) for answer in answers] == [bare(mllm, prompt) for prompt in prompts]
    assert {answer.finish for answer in answers} == {"stop"}
    assert generator.steps.slots  # by the loop, not the way round


@pytest.mark.parametrize("slots", [2, 6])
def test_so_they_are_where_no_two_prompts_share_an_image(images, slots):
    """Whole prompts of unlike lengths, prefilled side by side; random weights, which mind any column too many."""
    mllm = random_mllm(small(LlamaConfig))
    history = [("Why?", "a square.")]
    texts = [mllm.prompt_text(QUESTIONS[number % 3], history=history * (number % 2)) for number in range(6)]
    prompts = [Prompt(image, text, 30) for image, text in zip(images, texts, strict=True)]
    answers = mllm.generator.generate(prompts, slots)
    assert [(answer.text, answer.tokens) for answer in answers] == [bare(mllm, prompt) for prompt in prompts]
    assert mllm.generator.steps.slots


def test_so_they_are_in_single_precision(images):
    mllm = load_mllm(MODEL)
    prompts = prompts_of(mllm, images)
    assert [(one.text, one.tokens) for one in mllm.generator.generate(prompts, 5)] == [bare(mllm, p) for p in prompts]
    assert mllm.generator.steps.slots


def test_the_rounding_of_half_precision_does_not_rule_the_loop_out(images):
    for dtype in (torch.bfloat16, torch.float16):
        mllm = load_mllm(MODEL)
        mllm.model.to(dtype)
        answers = mllm.generator.generate(prompts_of(mllm, images), 5)
        assert mllm.generator.steps.slots and {answer.finish for answer in answers} == {"stop"}


def test_so_they_are_under_eager_attention(images):
    mllm = load_mllm(MODEL)
    mllm.model.set_attn_implementation("eager")
    mllm.model.double()
    prompts = prompts_of(mllm, images[:4])
    assert [(one.text, one.tokens) for one in mllm.generator.generate(prompts, 5)] == [bare(mllm, p) for p in prompts]
    assert mllm.generator.steps.slots


def test_long_answers_of_many_lengths_outgrow_the_room_that_was_set_aside(images):
    mllm = random_mllm(small(LlamaConfig))
    lengths = [1, 150, 3, 70, 64, 65, 200, 2, 9, 30, 31, 120]
    texts = [mllm.prompt_text(f"{'Describe ' * (number % 5)}this") for number in range(12)]
    prompts = [Prompt(images[number // 2], texts[number], length) for number, length in enumerate(lengths)]
    expected = [bare(mllm, prompt) for prompt in prompts]
    for slots in (2, 5, 16):
        answers = mllm.generator.generate(prompts, slots)
        assert [(one.text, one.tokens) for one in answers] == expected
        assert [one.tokens for one in answers] == lengths and {one.finish for one in answers} == {"length"}
    assert mllm.generator.steps.slots


def test_finished_rows_give_their_slots_to_waiting_ones(images):
    mllm = random_mllm(small(LlamaConfig))
    lengths = [80, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5]
    text = mllm.prompt_text("Describe this")
    mllm.generator.generate([Prompt(images[0], text, length) for length in lengths], 2)
    steps = mllm.generator.steps
    assert steps.useful == sum(length - 1 for length in lengths)  # the prefill gives the first token
    assert steps.slots == 2 * 44 + 35  # the other slot holds eleven answers; then the long one is alone


def test_the_order_of_the_requests_does_not_matter(mllm, generator, images):
    prompts = prompts_of(mllm, images)
    answers = dict(zip(prompts, generator.generate(prompts, 4), strict=True))
    for seed in range(3):
        shuffled = random.Random(seed).sample(prompts, len(prompts))
        assert generator.generate(shuffled, 4) == [answers[prompt] for prompt in shuffled]


def test_what_is_drawn_depends_on_the_request_alone(mllm, generator, images):
    mixed = [
        Prompt(image, mllm.prompt_text(question), 20, temperature, seed)
        for seed, image in enumerate(images)
        for question, temperature in zip(QUESTIONS, (2.0, 0.0, 0.7), strict=True)
    ]
    together = dict(zip(mixed, generator.generate(mixed, 64), strict=True))
    shuffled = random.Random(1).sample(mixed, len(mixed))
    assert generator.generate(shuffled, 5) == [together[prompt] for prompt in shuffled]
    assert [generator.generate([prompt], 1)[0] for prompt in mixed] == list(together.values())
    assert [together[p].text for p in mixed if p.temperature == 0] == [
        bare(mllm, p)[0] for p in mixed if not p.temperature
    ]
    hot = [Prompt(images[0], mllm.prompt_text(QUESTIONS[1]), 20, 2.0, seed) for seed in (1, 1, 2)]
    same, again, other = generator.generate(hot, 3)
    assert same == again != other


def test_the_first_token_is_drawn_from_the_models_own_distribution(mllm, generator, images, monkeypatch):
    text, temperature, draws = mllm.prompt_text(QUESTIONS[1]), 3.0, 2000
    prompts = [Prompt(images[0], text, 1, temperature, seed) for seed in range(draws)]
    inputs = mllm.processor(images=[images[0].permute(2, 0, 1)], text=[text], return_tensors="pt")
    logits = mllm.model(**inputs.to("cpu", dtype=torch.float64)).logits[0, -1]
    chances = (logits / temperature).softmax(-1)
    drawn = []
    tokens = generator._tokens
    monkeypatch.setattr(tokens, "generated", lambda ids: drawn.append(ids[0]) or type(tokens).generated(tokens, ids))
    generator.generate(prompts, 500)
    found = torch.bincount(torch.tensor(drawn), minlength=len(chances)).double()
    common = chances * draws >= 5
    chi = ((found - draws * chances) ** 2 / (draws * chances))[common].sum()
    degrees = int(common.sum())
    assert degrees > 10 and chi < degrees + 4 * (2 * degrees) ** 0.5


def test_three_texts_of_an_image_cost_one_pass_through_the_vision_tower(mllm, generator, images):
    seen = []
    hook = mllm.model.model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs.get("pixel_values", args[0] if args else ()))),
        with_kwargs=True,
    )
    try:
        prompts = prompts_of(mllm, images)
        generator.generate(prompts[:1], 1)
        seen.clear()  # the probe asks the whole model once
        generator.generate(prompts, 4)
        assert sum(seen) == len(images) - 1
        follow_up = [Prompt(image, mllm.prompt_text("Why?"), 5) for image in images]
        generator.generate(follow_up, 4)
        assert sum(seen) == len(images) - 1 == generator.images.encoded - 1
        generator.generate([Prompt(images[0].clone(), mllm.prompt_text("Why?"), 5)], 4)
        assert sum(seen) == len(images)
    finally:
        hook.remove()


def test_the_features_that_are_kept_are_bounded_and_those_let_go_of_are_made_again(
    mllm, generator, images, monkeypatch
):
    prompts = prompts_of(mllm, images)
    expected = generator.generate(prompts, 4)
    one = generator.images.bytes // len(images)
    monkeypatch.setattr(vision, "KEPT", 2 * one)
    monkeypatch.setattr(vision, "CHUNK", 2)
    assert generator.generate(prompts, 4) == expected == generator.generate(prompts[::-1], 4)[::-1]
    assert generator.images.bytes == 2 * one
    generator.close()
    assert generator.images.bytes == 0


@pytest.mark.parametrize("slots", [1, 4, 64])
def test_an_images_tokens_go_through_the_language_model_once(mllm, generator, images, slots):
    generator.generate(prompts_of(mllm, images[:1]), 1)  # the probe asks the whole model once
    config, passed = mllm.model.config, []
    hook = mllm.model.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: passed.append(int((args[0] == config.image_token_id).sum()))
    )
    try:
        generator.generate(prompts_of(mllm, images), slots)
    finally:
        hook.remove()
    assert sum(passed) == len(images) * config.image_seq_length


def test_a_refused_image_or_prompt_is_its_own_error_and_the_others_are_unharmed(mllm, generator, images):
    prompts = prompts_of(mllm, images)
    expected = generator.generate(prompts, 4)
    broken = Prompt(torch.zeros(0, 4, 3, dtype=torch.uint8), prompts[0].text, 30)
    doubled = Prompt(images[0], mllm.prompt_text("Is <image> an image?"), 30)
    answers = Generator(mllm.model, mllm.processor, mllm.device).generate(
        [broken, *prompts[:7], doubled, *prompts[7:]], 4
    )
    assert answers[1:8] + answers[9:] == expected
    assert answers[0].finish == "error" and "without pixels" in answers[0].error and not answers[0].text
    assert answers[8].finish == "error" and "2 image tokens" in answers[8].error and "\n" not in answers[8].error


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), OSError("disk")])
def test_a_systems_error_passes_through(mllm, images, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    broken = Generator(mllm.model, mllm.processor, mllm.device)
    monkeypatch.setattr(broken.images, "_processed", fail)
    with pytest.raises(type(error)):
        broken.generate(prompts_of(mllm, images), 4)


def test_no_requests_give_no_answers(generator):
    assert generator.generate([], 4) == []


def test_images_of_several_sizes_share_a_call(mllm, generator):
    images = [torch.from_numpy(render(5, label, 0).image).repeat(label + 1, 2, 1) for label in range(3)]
    prompts = prompts_of(mllm, images)
    assert [(one.text, one.tokens) for one in generator.generate(prompts, 64)] == [bare(mllm, p) for p in prompts]


def test_images_of_several_token_counts_share_a_batch(images):
    """LLaVA-NeXT cuts an image into as many tiles as its shape asks for."""
    shipped = AutoProcessor.from_pretrained("fedscale/teachers/shapes/llava")
    grid = [[32, 64], [64, 32], [64, 64]]
    torch.manual_seed(0)
    sight = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    config = LlavaNextConfig(
        vision_config=sight,
        text_config=small(LlamaConfig),
        image_token_index=shipped.image_token_id,
        image_grid_pinpoints=grid,
        vision_feature_layer=-1,
    )
    model = LlavaNextForConditionalGeneration(config).double()
    model.generation_config.eos_token_id = None
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=grid
        ),
        tokenizer=shipped.tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=shipped.chat_template,
        image_token="<image>",
    )
    mllm = Mllm(model, processor, torch.device("cpu"))
    shapes = [(32, 32), (32, 64), (64, 32), (20, 90), (64, 64), (90, 20)]
    pool = [torch.randint(0, 255, (*shape, 3), dtype=torch.uint8) for shape in shapes]
    prompts = prompts_of(mllm, pool, max_new_tokens=12)
    for slots in (3, 64):
        answers = mllm.generator.generate(prompts, slots)
        assert [(one.text, one.tokens) for one in answers] == [bare(mllm, prompt) for prompt in prompts]
    assert mllm.generator.steps.slots  # the loop, not the way round


def test_a_model_with_a_sliding_window_goes_through_generate_and_says_so_once(images, recwarn):
    mllm = random_mllm(small(MistralConfig, sliding_window=8))
    prompts = prompts_of(mllm, images, max_new_tokens=12)
    answers = mllm.generator.generate(prompts, 4)
    assert [(one.text, one.tokens) for one in answers] == [bare(mllm, prompt) for prompt in prompts]
    assert mllm.generator.generate(prompts[:2], 4) == answers[:2]
    said = [str(one.message) for one in recwarn if "model.generate" in str(one.message)]
    assert len(said) == 1 and "DynamicSlidingWindowLayer" in said[0]
    broken = Prompt(torch.zeros(0, 4, 3, dtype=torch.uint8), prompts[0].text, 12)
    assert [one.finish for one in mllm.generator.generate([broken, prompts[0]], 4)] == ["error", "length"]


def test_both_ways_draw_the_same(mllm, generator, images):
    prompts = [Prompt(image, mllm.prompt_text(QUESTIONS[1]), 20, 1.5, seed) for seed, image in enumerate(images)]
    looped = generator.generate(prompts, 4)
    generator._against = "asked for by this test"
    assert generator.generate(prompts, 4) == looped


def test_a_model_that_computes_otherwise_than_the_loop_is_found_out(mllm, images, monkeypatch):
    """As a model would that feeds its image features in at several layers."""
    inner = mllm.model.get_image_features

    def otherwise(*args, **kwargs):
        found = inner(*args, **kwargs)
        found.pooler_output = [one.flip(0) for one in found.pooler_output]
        return found

    monkeypatch.setattr(mllm.model, "get_image_features", otherwise)
    prompts = prompts_of(mllm, images[:2])
    with pytest.warns(UserWarning, match="logits are off by"):
        answers = Generator(mllm.model, mllm.processor, mllm.device).generate(prompts, 4)
    assert [(one.text, one.tokens) for one in answers] == [bare(mllm, prompt) for prompt in prompts]


@pytest.mark.parametrize(("owner", "attribute"), [("model", "get_image_features"), ("images", "_processed")])
def test_a_model_whose_images_cannot_be_had_alone_goes_through_generate(mllm, images, monkeypatch, owner, attribute):
    def fail(*args, **kwargs):
        raise ValueError("not like that")

    expected = mllm.generator.generate(prompts := prompts_of(mllm, images[:2]), 4)
    other = Generator(mllm.model, mllm.processor, mllm.device)
    if owner == "model":  # the whole model has its own way to them
        monkeypatch.setattr(mllm.model, attribute, fail)
    else:
        monkeypatch.setattr(other.images, attribute, fail)
    with pytest.warns(UserWarning, match="not like that"):
        assert other.generate(prompts, 4) == expected
    assert not other.steps.slots


def test_what_the_loop_is_not_right_for_is_known_by_the_config(mllm):
    with torch.device("meta"):
        text = {
            "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 2, "vocab_size": 160000,
        }  # fmt: skip
        qwen = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text))
        pali = PaliGemmaForConditionalGeneration(PaliGemmaConfig(text_config=text | {"model_type": "gemma"}))
    assert "M-RoPE" in against(qwen) or "token types" in against(qwen)  # whichever is seen first
    assert "token types" in against(pali)
    assert against(mllm.model) is None


def test_a_generation_config_that_changes_greedy_answers_is_left_to_generate(images):
    mllm = load_mllm(MODEL)
    mllm.model.generation_config.repetition_penalty = 1.3
    assert "repetition_penalty" in against(mllm.model)
