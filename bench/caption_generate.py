"""What the caption engine's decode loop gains, on a CPU with random weights: `python bench/caption_generate.py`.

1. against bare `model.generate` on the same batches, answers all of one length, nothing to refill: what it costs
2. three texts of an image in one call against three calls: what one vision pass and one shared prefix save
3. answers of drawn lengths: slot use and time of static batches, and of the loop, which refills its slots

Both sides of a comparison run in turn, several times; the figures are the medians of the paired ratios. `--shares`
tries other values of REFILL_SHARE (the last number of a row's name, behind the slots); `--json FILE` keeps the figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from fedscale.models.generation import Generator, Prompt
from fedscale.models.generation.loop import REFILL_SHARE
from fedscale.models.mllm import Mllm

SHIPPED = Path(__file__).resolve().parents[1] / "fedscale" / "teachers" / "shapes" / "llava"  # for its tokenizer
QUESTIONS = ("Describe this image in detail.", "What is the main object in this image?", "Why?")
LENGTHS = ((70, 0.4), (150, 0.5))  # mean tokens of an answer, and their coefficient of variation
SMALL = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8}


def random_llava(language: dict[str, Any], sight: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Mllm:
    """A LLaVA-1.5 of these sizes whose answers never end by themselves."""
    shipped = AutoProcessor.from_pretrained(SHIPPED)
    vision = CLIPVisionConfig(**sight)
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**{"vocab_size": 97, "max_position_embeddings": 4096} | language),
        image_token_index=shipped.image_token_id,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with device:
        model = LlavaForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = None
    side = vision.image_size
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        shipped.tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=shipped.chat_template,
        image_token=shipped.image_token,
    )
    return Mllm(model, processor, device)


def drawn_lengths(mean: float, cv: float, count: int) -> list[int]:
    """Log-normal answer lengths in tokens, as in the simulation of PITFALLS."""
    spread = np.log1p(cv**2)
    drawn = np.random.default_rng(7).lognormal(np.log(mean) - spread / 2, np.sqrt(spread), count)
    return np.maximum(1, drawn.round()).astype(int).tolist()


def drawn_images(count: int, side: int) -> list[Tensor]:
    """Images uint8 [side, side, 3] of noise: what is seen makes no difference to the cost."""
    source = torch.Generator().manual_seed(7)
    return list(torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=source))


def prompts_of(mllm: Mllm, images: Sequence[Tensor], lengths: Sequence[int], question: int = 0) -> list[Prompt]:
    """One question about each image, with its answer's length as the limit."""
    text = mllm.prompt_text(QUESTIONS[question])
    return [Prompt(image, text, length) for image, length in zip(images, lengths, strict=True)]


@torch.inference_mode()
def static(mllm: Mllm, prompts: Sequence[Prompt], size: int) -> list[str]:
    """Batches of `size` through bare `model.generate`, each until its longest answer ends."""
    texts = []
    for start in range(0, len(prompts), size):
        batch = prompts[start : start + size]
        inputs = mllm.processor(
            images=[prompt.image.permute(2, 0, 1) for prompt in batch],
            text=[prompt.text for prompt in batch],
            padding=True,
            return_tensors="pt",
        ).to(mllm.device, dtype=mllm.model.dtype)
        longest = max(prompt.max_new_tokens for prompt in batch)
        out = mllm.model.generate(**inputs, do_sample=False, max_new_tokens=longest)[:, inputs["input_ids"].shape[1] :]
        texts += [
            mllm.tokenizer.decode(ids[: prompt.max_new_tokens], skip_special_tokens=True).strip()
            for ids, prompt in zip(out, batch, strict=True)
        ]
    return texts


def looped(
    mllm: Mllm, prompts: Sequence[Prompt], size: int, share: float = REFILL_SHARE
) -> tuple[list[str], Generator]:
    """The same through the loop, nothing kept from before; also the generator, for what it counted."""
    generator = Generator(mllm.model, mllm.processor, mllm.device, share)
    generator._probed = True  # once a run, not once a call
    return [answer.text for answer in generator.generate(prompts, size)], generator


def paired(first: Callable[[], Any], second: Callable[[], Any], repeats: int) -> tuple[float, float, float]:
    """Median seconds of both, run in turn after one run for warmth, and the median of first / second."""
    first(), second()
    seconds: list[tuple[float, float]] = []
    for _ in range(repeats):
        began = time.perf_counter()
        first()
        between = time.perf_counter()
        second()
        seconds.append((between - began, time.perf_counter() - between))
    ratios = [a / b for a, b in seconds]
    return statistics.median(a for a, _ in seconds), statistics.median(b for _, b in seconds), statistics.median(ratios)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shares", type=float, nargs="*", default=[REFILL_SHARE])
    parser.add_argument("--only", type=int, choices=(1, 2, 3))
    args = parser.parse_args()
    device = torch.device("cpu")
    sight = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2}
    mllm = random_llava(SMALL, sight | {"image_size": 96, "patch_size": 8}, device, torch.float32)
    figures: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    table = Table("", "without", "with", "ratio", "aim")

    if args.only in (None, 1):
        batch = prompts_of(mllm, drawn_images(16, 96), [70] * 16)
        texts, _ = looped(mllm, batch, 16)
        alike = sum(a == b for a, b in zip(texts, static(mllm, batch, 16), strict=True))
        bare, ours, ratio = paired(lambda: static(mllm, batch, 16), lambda: looped(mllm, batch, 16), args.repeats)
        figures["bare"] = {"generate_s": bare, "loop_s": ours, "speed": ratio, "texts": len(batch), "equal": alike}
        table.add_row("1 same batches (speed)", f"{bare:.2f} s", f"{ours:.2f} s", f"{ratio:.3f}", ">= 0.97")
        table.add_row("  equal texts", "", "", f"{alike} of {len(batch)}", "all")

    if args.only in (None, 2):
        images = drawn_images(24, 96)  # slots are as full and decode steps as many, either way
        apart = [prompts_of(mllm, images, [70] * 24, question) for question in range(3)]
        together = [prompt for several in zip(*apart, strict=True) for prompt in several]
        single, ours, ratio = paired(
            lambda: [looped(mllm, part, 24) for part in apart], lambda: looped(mllm, together, 24), args.repeats
        )
        figures["three_texts"] = {"apart_s": single, "together_s": ours, "time": 1 / ratio}
        table.add_row("2 three texts (time)", f"{single:.2f} s", f"{ours:.2f} s", f"{1 / ratio:.3f}", "<= 0.9")

    if args.only in (None, 3):
        figures["slots"] = [
            slot_use(mean, cv, size, share, table) for mean, cv in LENGTHS for size in (8, 32) for share in args.shares
        ]
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def slot_use(mean: float, cv: float, size: int, share: float, table: Table) -> dict[str, float]:
    """Useful tokens by slot-steps and seconds, of both; a smaller model still, for the count does not depend on it."""
    tiny = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    mllm = random_llava(tiny, tiny | {"image_size": 96, "patch_size": 8}, torch.device("cpu"), torch.float32)
    count = 8 * size if size > 8 else 16 * size
    lengths = drawn_lengths(mean, cv, count)
    prompts = prompts_of(mllm, drawn_images(count, 96), lengths)
    began = time.perf_counter()
    static(mllm, prompts, size)
    between = time.perf_counter()
    _, generator = looped(mllm, prompts, size, share)
    ended = time.perf_counter()
    bare, ours = between - began, ended - between
    before = sum(lengths) / sum(size * max(lengths[start : start + size]) for start in range(0, count, size))
    after = generator.steps.useful / generator.steps.slots
    name = f"3 slot use, {mean}±{cv:.0%} ×{size}, {share:.3g}"
    table.add_row(name, f"{before:.2f} ({bare:.1f} s)", f"{after:.2f} ({ours:.1f} s)", f"{after / before:.2f}", "use 1")
    return {
        "mean": mean,
        "cv": cv,
        "slots": size,
        "share": share,
        "static_use": before,
        "loop_use": after,
        "static_s": bare,
        "loop_s": ours,
        "prefills": generator.steps.prefills,
    }


if __name__ == "__main__":
    main()
