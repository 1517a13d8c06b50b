"""Tiny teachers trained through the real code: a CLIP and a LLaVA that have seen a dozen random images."""

from pathlib import Path

import torch

from fedscale.config.schema import CaptionConfig
from fedscale.progress import SilentReporter
from fedscale.teachers.clip import ClipSize, train_clip
from fedscale.teachers.llava import LlavaSize, train_llava
from fedscale.teachers.optimiser import Schedule

QUESTION = "What is it?"


TEXTS = ["a red thing.", "a green thing.", "a blue thing."] * 4
SCHEDULE = Schedule(epochs=1, batch_size=12)


def train_tiny_clip(images: torch.Tensor, clip: Path) -> None:
    """Train a CLIP of 16-dimensional embeddings on twelve images into its folder."""
    small = ClipSize(patch_size=16, width=32, layers=1, heads=1, embed_dim=16, text_width=32, text_layers=1)
    train_clip(images, [TEXTS], clip, small, SCHEDULE, [], SilentReporter())


def train_tiny_teachers(folder: Path) -> tuple[str, str]:
    """Train them; the folders of CLIP and MLLM."""
    images = torch.randint(0, 256, (12, 32, 32, 3), dtype=torch.uint8)
    clip, mllm = folder / "clip", folder / "mllm"
    train_tiny_clip(images, clip)
    questions = {kind: [QUESTION] for kind in CaptionConfig().kinds}
    size = LlavaSize(width=32, layers=1, heads=1, intermediate=32)
    answers = dict.fromkeys(questions, TEXTS)
    train_llava(images, answers, questions, clip, mllm, size, SCHEDULE, ["The main"], SilentReporter())
    return str(clip), str(mllm)
