"""The multimodal LLM, through transformers: any AutoModelForImageTextToText with its processor and chat template."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedscale.config.schema import MllmConfig
from fedscale.errors import UserError
from fedscale.models.cache_word import cache_word
from fedscale.models.chat import chat_text
from fedscale.models.hub import dtype_on, explained, local_folder, offline_where_unreachable, without_bars
from fedscale.rng import derive

if TYPE_CHECKING:
    from fedscale.models.generation import Generated, Generator

KEY = "teachers.mllm.model"
MARKER = "config.json"
MAX_ROWS = 512  # (image, class) pairs scored at once


class Mllm:
    """A multimodal LLM for inference."""

    def __init__(self, model: Any, processor: Any, device: torch.device | None = None) -> None:
        """`device`: where to put the model; none = it stays where it is, on several devices maybe."""
        model = model.eval().requires_grad_(False)
        self.model = model if device is None else model.to(device)
        self.processor = processor
        self.device = self.model.get_input_embeddings().weight.device  # where inputs go
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "left"  # generation continues at the right end
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def prompt_text(self, question: str, with_image: bool = True, history: Sequence[tuple[str, str]] = ()) -> str:
        """The question in the model's chat form, as `chat_text` writes it."""
        return chat_text(self.processor, question, with_image, history)

    @cached_property
    def generator(self) -> Generator:
        """What answers prompts about images, many at once."""
        from fedscale.models.generation import Generator

        return Generator(self.model, self.processor, self.device)

    def forget_images(self) -> None:
        """Let go of the features that `generator` keeps for images that come again."""
        if "generator" in vars(self):
            self.generator.close()

    def generate(
        self, images: Tensor, questions: Sequence[str], max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[Generated]:
        """Answer `questions[i]` about image i, uint8 [B, H, W, 3]; greedy at temperature 0, else drawn from `seed`."""
        from fedscale.models.generation import Prompt

        prompts = [
            Prompt(image, self.prompt_text(question), max_new_tokens, temperature, derive(seed, "generate", row))
            for row, (image, question) in enumerate(zip(images, questions, strict=True))
        ]
        return self.generator.generate(prompts, len(prompts))

    @torch.inference_mode()
    def class_log_likelihoods(
        self, images: Tensor, question: str, class_names: Sequence[str], answer: str = "{a} {name}."
    ) -> Tensor:
        """log p(answer naming the class | image, question), summed over its tokens and the end token: float32 [B, C].

        Each image is encoded once, and its keys and values are shared by all classes. `answer` may hold `{a}`, the
        article that fits the name [D].
        """
        inputs = self._inputs(images, [question] * len(images))
        if not bool(inputs["attention_mask"].all()):
            raise AssertionError("equal images and one question make prompts of one length")
        prompt = self.model(**inputs, use_cache=True)
        first = prompt.logits[:, -1].float().log_softmax(-1)
        answers = [self._answer_ids(question, _fill(answer, name)) for name in class_names]
        step = max(1, MAX_ROWS // len(images))
        parts = [
            self._continuations(prompt[cache_word(self.model)], first, answers[start : start + step])
            for start in range(0, len(answers), step)
        ]
        return torch.cat(parts, dim=1)

    def language_model(self) -> tuple[Any, Any]:
        """The language model alone with its head (it takes `inputs_embeds`, gives `.logits`), and its tokenizer.

        It shares its weights with `model`: train it, or put adapters into it, only where the MLLM is not used again.
        """
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            language = AutoModelForCausalLM.from_config(self.model.config.get_text_config())
        setattr(language, language.base_model_prefix, self.model.get_decoder())
        language.lm_head = self.model.lm_head
        left = [name for name, p in language.named_parameters() if p.is_meta]
        if left:
            raise UserError(f"{KEY}: the language model of {type(self.model).__name__} cannot be taken out ({left[0]})")
        return language.eval(), self.tokenizer

    def _inputs(self, images: Tensor, questions: Sequence[str]) -> Any:
        texts = [self.prompt_text(question) for question in questions]
        pixels = list(images.permute(0, 3, 1, 2))
        inputs = self.processor(images=pixels, text=texts, padding=True, return_tensors="pt")
        return inputs.to(self.device, dtype=self.model.dtype)  # only floats change their dtype

    def _answer_ids(self, question: str, text: str) -> list[int]:
        """The ids that the answer adds to the prompt, and the end token: tokenised together, as in training."""
        prompt = self.prompt_text(question)
        before, whole = self.tokenizer(prompt)["input_ids"], self.tokenizer(f"{prompt} {text}")["input_ids"]
        return [*whole[len(before) :], self.tokenizer.eos_token_id]

    def _continuations(self, cache: Any, first: Tensor, answers: list[list[int]]) -> Tensor:
        """Log-likelihoods [B, len(answers)] of the answers behind the prompt whose keys and values are in `cache`."""
        batch, count, longest = len(first), len(answers), max(map(len, answers))
        ids = torch.full((count, longest), self.tokenizer.pad_token_id, device=self.device)
        counted = torch.zeros((count, longest), dtype=torch.bool, device=self.device)
        for row, answer in enumerate(answers):
            ids[row, : len(answer)] = torch.tensor(answer, device=self.device)
            counted[row, : len(answer)] = True
        cache = copy.deepcopy(cache)
        cache.batch_repeat_interleave(count)
        read = {cache_word(self.model): cache}
        logits = self.model(input_ids=ids.repeat(batch, 1), use_cache=True, **read).logits
        later = logits.float().log_softmax(-1).view(batch, count, longest, -1)
        predicted = torch.cat([first[:, None, None].expand(-1, count, 1, -1), later[:, :, :-1]], dim=2)
        chosen = predicted.gather(-1, ids.expand(batch, -1, -1)[..., None])[..., 0]
        return (chosen * counted).sum(-1)


def load_mllm(config: MllmConfig, device: torch.device | str = "cpu", held: torch.device | str | None = None) -> Mllm:
    """The MLLM of the config, on the device, or spread over what the process sees where `device_map` says so.

    `held`: where it waits instead, in the dtype for the device. Raises UserError, with the remedies, when its weights
    can be had nowhere.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    device = torch.device(device)
    folder = local_folder(config.model, MARKER, KEY)
    source = str(folder) if folder else config.model
    settings = {"revision": config.revision, "dtype": dtype_on(config.dtype, device)}
    if config.device_map:
        settings["device_map"] = config.device_map
    with explained(KEY, config.model), without_bars(), nullcontext() if folder else offline_where_unreachable():
        processor = AutoProcessor.from_pretrained(source, revision=config.revision)
        model = AutoModelForImageTextToText.from_pretrained(source, **settings)
    return Mllm(model, processor, None if config.device_map else torch.device(held or device))


def _fill(answer: str, name: str) -> str:
    name = name.replace("_", " ")
    return answer.replace("{a}", "an" if name[:1].lower() in "aeiou" else "a").replace("{name}", name)
