"""`make demo-teachers`: trains the demo's tiny CLIP and tiny LLaVA from scratch and ships them into `teachers/shapes`.

Both learn from captioned images of the stream SEED, which no recipe's images come from. Each must name the class of
at least 80% of the held-out images (LLaVA: in its captions of every kind), else the script fails and ships nothing.
About 6 minutes on one idle CPU core.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedscale import files
from fedscale.config.schema import TEXT_KINDS, ClipConfig, MllmConfig, PromptsConfig
from fedscale.data.shapes import CLASSES, Shape, render
from fedscale.house import PACKAGE
from fedscale.progress import Reporter, TerminalReporter
from fedscale.rng import derive
from fedscale.server.caption.prompts import of_kind
from fedscale.teachers.accuracy import clip_accuracy, llava_accuracy
from fedscale.teachers.clip import ClipSize, train_clip
from fedscale.teachers.llava import LlavaSize, train_llava
from fedscale.teachers.optimiser import Schedule

SEED = 2409
THREADS = 1  # more gain little at these sizes
IMAGES = 3000  # a class
HELD_OUT = 100  # a class
REQUIRED = 80.0  # percent
MAX_BYTES = 4_000_000  # of both folders together
CLIP_SIZE = ClipSize(layers=4)
CLIP_SCHEDULE = Schedule(epochs=5, batch_size=64, muon_lr=0.02, augment="flip", seed=SEED)
LLAVA_SIZE = LlavaSize()
LLAVA_SCHEDULE = Schedule(epochs=2, batch_size=64, muon_lr=0.02, augment="flip", seed=SEED)
COMMAND = "python -m fedscale.teachers.shapes"


def main(out: Path, reporter: Reporter) -> int:
    """Train, measure and ship both teachers into `out`; the exit code."""
    began = time.perf_counter()
    torch.set_num_threads(THREADS)
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    questions = shapes_questions()
    images, _, shown = dataset("train", IMAGES)
    reporter.say(f"{len(images):,} captioned images in {time.perf_counter() - began:.0f} s")
    train_clip(images, clip_texts(shown), fresh / "clip", CLIP_SIZE, CLIP_SCHEDULE, [], reporter)
    clip_minutes = (time.perf_counter() - began) / 60
    spoken = {kind: [shape.texts[kind] for shape in shown] for kind in questions}
    train_llava(images, spoken, questions, fresh / "clip", fresh / "llava", LLAVA_SIZE, LLAVA_SCHEDULE, [], reporter)
    minutes = (time.perf_counter() - began) / 60
    images, labels, _ = dataset("held out", HELD_OUT)
    asked = {kind: several[0] for kind, several in questions.items()}
    accuracy = {
        "clip": clip_accuracy(fresh / "clip", images, labels, CLASSES, ClipConfig().prompt),
        **{f"llava {kind}": a for kind, a in llava_accuracy(fresh / "llava", images, labels, CLASSES, asked).items()},
    }
    size = sum(path.stat().st_size for path in fresh.rglob("*") if path.is_file())
    card = {
        "accuracy": {name: round(value, 1) for name, value in accuracy.items()},
        "bytes": size,
        "command": COMMAND,
        "held_out_images": len(images),
        "minutes": round(minutes, 1),
        "minutes_clip": round(clip_minutes, 1),
        "seed": SEED,
        "threads": THREADS,
        "training_images": IMAGES * len(CLASSES),
    }
    reporter.say(json.dumps(card, indent=1))
    missed = [name for name, value in accuracy.items() if value < REQUIRED]
    if missed or size > MAX_BYTES:
        why = f"{', '.join(missed)} below {REQUIRED:.0f}%" if missed else f"{size:,} bytes, more than {MAX_BYTES:,}"
        reporter.say(f"not shipped: {why}; left in {fresh}")
        return 1
    files.write_json(fresh / "card.json", card)
    files.write_text(fresh / "README.md", _readme(card))
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)
    return 0


def dataset(purpose: str, per_class: int) -> tuple[Tensor, Tensor, list[Shape]]:
    """Images uint8 [N, 32, 32, 3], labels [N] and the shapes, of a stream that only this script draws from."""
    seed = derive(SEED, "teachers", purpose)
    shown = [render(seed, label, index) for index in range(per_class) for label in range(len(CLASSES))]
    images = torch.from_numpy(np.stack([shape.image for shape in shown]))
    return images, torch.tensor([shape.label for shape in shown]), shown


def clip_texts(shown: Iterable[Shape]) -> list[list[str]]:
    """The kinds of text that CLIP learns from: the class prompt (three times in four), and the description."""
    shown = list(shown)
    classes = [ClipConfig().prompt.replace("{}", CLASSES[shape.label]) for shape in shown]
    return [classes, classes, classes, [shape.texts["description"] for shape in shown]]


def shapes_questions() -> dict[str, list[str]]:
    """What LLaVA is asked, by kind: the configured prompts' defaults, and the alignment's question."""
    prompts, question = PromptsConfig(), MllmConfig().question
    asked = {kind: [turns[0] for turns in of_kind(prompts, kind)] for kind in TEXT_KINDS}
    if question not in asked["conversation"]:
        asked["conversation"].append(question)
    return asked


def _readme(card: dict[str, object]) -> str:
    accuracy = card["accuracy"]
    assert isinstance(accuracy, dict)
    rows = "\n".join(f"| {name} | {value} % |" for name, value in accuracy.items())
    return (
        "# The demo's teachers\n\n"
        "A tiny CLIP (`clip/`, open_clip's layout) and a tiny LLaVA on its frozen vision tower (`llava/`,\n"
        f"transformers' layout), trained from scratch by `{card['command']}` (`make demo-teachers`) on "
        f"{card['training_images']:,} captioned images\n"
        f"of the procedural set `shapes`, seed {card['seed']}, in {card['minutes']} minutes on {card['threads']} CPU "
        "threads. No client holds any of these images.\n\n"
        f"Class accuracy on {card['held_out_images']:,} held-out images (CLIP: zero-shot; LLaVA: in its captions):\n\n"
        f"| teacher | accuracy |\n|---|---|\n{rows}\n"
    )


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE / "teachers" / "shapes"
    sys.exit(main(target, TerminalReporter()))
