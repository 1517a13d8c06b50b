"""Stage 3 with a real CLIP and a real LLaVA, tiny and hardly trained, through the loaders that load the large ones."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedscale import files
from fedscale.config.schema import (
    AlignConfig,
    CaptionConfig,
    ClipConfig,
    Config,
    EvalConfig,
    GroupsConfig,
    MllmConfig,
    ModelConfig,
    TeachersConfig,
)
from fedscale.data.images import encode_png
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.shards import Sample, write_shard
from fedscale.models import build_model
from fedscale.progress import SilentReporter
from fedscale.runs import RunFolder
from fedscale.server import align, caption
from fedscale.session import Session
from fedscale.teachers.clip import ClipSize, train_clip
from fedscale.teachers.llava import LlavaSize, train_llava
from fedscale.teachers.optimiser import Schedule

QUESTION = "What is it?"
WORDS = ("red", "green", "blue")
TEXTS = [f"a {word} thing." for word in WORDS] * 4


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> TeachersConfig:
    folder: Path = tmp_path_factory.mktemp("teachers")
    images = torch.randint(0, 256, (12, 32, 32, 3), dtype=torch.uint8)
    schedule, reporter = Schedule(epochs=1, batch_size=12), SilentReporter()
    small = ClipSize(patch_size=16, width=32, layers=1, heads=1, embed_dim=16, text_width=32, text_layers=1)
    train_clip(images, [TEXTS], folder / "clip", small, schedule, [], reporter)
    questions = {kind: [QUESTION] for kind in CaptionConfig().kinds}
    texts = dict.fromkeys(questions, TEXTS)
    size = LlavaSize(width=32, layers=1, heads=1, intermediate=32)
    train_llava(images, texts, questions, folder / "clip", folder / "mllm", size, schedule, ["The main"], reporter)
    mllm = MllmConfig(str(folder / "mllm"), question=QUESTION)
    return TeachersConfig(clip=ClipConfig(str(folder / "clip"), prompt="a {} thing."), mllm=mllm)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    rng, root, splits = np.random.default_rng(0), tmp_path / "shards", {}
    for start, split in ((0, "train"), (100, "test"), (200, "pool")):
        samples = []
        for n in range(12):
            picture = encode_png(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            pool = {"keyword": WORDS[n % 3]} if split == "pool" else {"label": n % 3}
            samples.append(Sample(f"{start + n:08d}", picture, "png", **pool))
        written = write_shard(root / f"{split}/00000.tar", samples)
        histogram = dict.fromkeys(WORDS, 4)
        info = ShardInfo(f"{split}/00000.tar", written.samples, written.bytes, written.sha256, histogram)
        splits[split] = (info,)
    manifest = Manifest(root, "words", WORDS, "f" * 16, splits, {})
    manifest.save()
    return manifest


@pytest.mark.parametrize("teacher", ["clip", "mllm"])
def test_a_real_teacher_gives_a_distribution_to_align_with(manifest, teachers, tmp_path, teacher):
    config = Config(
        name="t",
        device="cpu",
        model=ModelConfig(width=4),
        teachers=teachers,
        caption=CaptionConfig(engine="template"),
        align=AlignConfig(teacher=teacher, labels="keyword", images_per_class=3, epochs=2, batch_size=5),
        eval=EvalConfig(groups=GroupsConfig(many_classes=1, few_classes=1)),
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=str(manifest.root)))
    run = RunFolder(tmp_path / "run")
    caption.run(config, run, Session())
    torch.manual_seed(0)
    run.stage("federate").mkdir(parents=True)
    save_file(build_model(config.model, 3).state_dict(), run.stage("federate") / "model.safetensors")
    summary = align.run(config, run, Session())
    logits = load_file(run.stage("align") / "teacher.safetensors")["logits"]
    assert summary["images"] == 9 and logits.shape == (9, 3) and logits.isfinite().all()
    assert (logits.std(dim=1) > 0).all(), "the classes are told apart"
    rows = files.read_jsonl(run.stage("align") / "metrics.jsonl")
    assert len(rows) == 2 and all(np.isfinite([row["ce"], row["kl"]]).all() for row in rows)
    align.run(config, run, Session())
    assert torch.equal(load_file(run.stage("align") / "teacher.safetensors")["logits"], logits)
