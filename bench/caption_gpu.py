"""Captions a second of a 7B LLaVA on one GPU: `python bench/caption_gpu.py`, or `--tiny` to try the script on a CPU.

LLaVA-1.5-7B's sizes (CLIP ViT-L/14 at 336 pixels, LLaMA-7B) with random weights in bfloat16: static batches through
bare `model.generate` against the caption engine's loop, the same images, questions and answer lengths. Random weights
never end an answer by themselves, so each answer's length is drawn, and both sides stop there; a static batch runs
until its longest. Busy is the share of the time in which nvidia-smi saw a kernel at work.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from caption_generate import LENGTHS, QUESTIONS, drawn_images, drawn_lengths, looped, prompts_of, random_llava, static
from rich.console import Console
from rich.table import Table

from fedscale.models.generation import Prompt
from fedscale.models.generation.loop import REFILL_SHARE
from fedscale.models.mllm import Mllm

LANGUAGE = {"vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
SIGHT = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SEVEN_BILLION = (LANGUAGE | {"num_attention_heads": 32}, SIGHT | {"image_size": 336, "patch_size": 14})
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY = (SMALL, SMALL | {"image_size": 48, "patch_size": 8})


@contextmanager
def watched(device: torch.device) -> Iterator[list[float]]:
    """Fills the list with nvidia-smi's utilisation, a share each 0.1 s; with nothing where there is no GPU."""
    shares: list[float] = []
    if device.type != "cuda" or not shutil.which("nvidia-smi"):
        yield shares
        return
    index = str(torch.cuda.get_device_properties(device).uuid)
    command = ["nvidia-smi", f"--id=GPU-{index}", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    with subprocess.Popen([*command, "--loop-ms=100"], stdout=subprocess.PIPE, text=True) as sampler:
        try:
            yield shares
        finally:
            sampler.terminate()
            assert sampler.stdout is not None
            shares += [float(line) / 100 for line in sampler.stdout if line.strip().isdigit()]


def measured(name: str, work: Callable[[], Any], prompts: list[Prompt], device: torch.device) -> dict[str, Any]:
    """Seconds, captions and tokens a second, busy share and peak memory of `work`, which answers all prompts."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    with watched(device) as shares:
        began = time.perf_counter()
        work()  # its answers are on the host, so the GPU is done with them
        seconds = time.perf_counter() - began
    tokens = sum(prompt.max_new_tokens for prompt in prompts)
    return {
        "name": name,
        "seconds": seconds,
        "captions_per_s": len(prompts) / seconds,
        "tokens_per_s": tokens / seconds,
        "busy": sum(shares) / len(shares) if shares else None,
        "memory_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small sizes, on the CPU")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--images", type=int, default=0, help="with three questions each; 0 = five times the slots")
    parser.add_argument("--mean", type=float, default=LENGTHS[0][0], help="tokens of an answer")
    parser.add_argument("--cv", type=float, default=LENGTHS[0][1], help="coefficient of variation of that")
    parser.add_argument("--shares", type=float, nargs="*", default=[REFILL_SHARE])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device("cpu" if args.tiny else "cuda")
    sizes, dtype = (TINY, torch.float32) if args.tiny else (SEVEN_BILLION, torch.bfloat16)
    mllm = random_llava(*sizes, device, dtype)
    prompts, apart = asked(mllm, args.images or 5 * args.slots, sizes[1]["image_size"], args.mean, args.cv)

    warm = prompts[: args.slots]
    static(mllm, [Prompt(one.image, one.text, 4) for one in warm], args.slots)
    mllm.generator.generate([Prompt(one.image, one.text, 4) for one in warm], args.slots)
    rows = [measured("static batches", lambda: static(mllm, apart, args.slots), apart, device)]
    for share in args.shares:
        name = f"loop, refilled at {share:.3g} free"
        rows.append(measured(name, lambda share=share: looped(mllm, prompts, args.slots, share), prompts, device))  # type: ignore[misc]

    table = Table("", "seconds", "captions/s", "tokens/s", "GPU busy", "GiB", "speed")
    for row in rows:
        busy = "" if row["busy"] is None else f"{row['busy']:.0%}"
        memory = "" if row["memory_gib"] is None else f"{row['memory_gib']:.1f}"
        figures = [f"{row[key]:.2f}" for key in ("seconds", "captions_per_s", "tokens_per_s")]
        table.add_row(row["name"], *figures, busy, memory, f"{rows[0]['seconds'] / row['seconds']:.2f}")
    Console().print(
        f"{len(prompts)} texts, {args.slots} slots, {args.mean:g} ± {args.cv:.0%} tokens, {dtype}, {device}"
    )
    Console().print(table)
    if args.json:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        args.json.write_text(json.dumps({"device": name, **vars(args), "json": "", "rows": rows}, indent=1) + "\n")


def asked(mllm: Mllm, count: int, side: int, mean: float, cv: float) -> tuple[list[Prompt], list[Prompt]]:
    """Three prompts an image: image by image, and question by question, which static batches are quicker with."""
    images, lengths = drawn_images(count, side), drawn_lengths(mean, cv, 3 * count)
    apart = [prompts_of(mllm, images, lengths[number::3], number) for number in range(len(QUESTIONS))]
    return [one for several in zip(*apart, strict=True) for one in several], [one for part in apart for one in part]


if __name__ == "__main__":
    main()
