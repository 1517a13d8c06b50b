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
from fedscale.runs import RunFolder
from fedscale.server import align, caption
from fedscale.session import Session
from tests.server.teachers_support import QUESTION, train_tiny_teachers

WORDS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> TeachersConfig:
    clip, mllm = train_tiny_teachers(tmp_path_factory.mktemp("teachers"))
    return TeachersConfig(clip=ClipConfig(clip, prompt="a {} thing."), mllm=MllmConfig(mllm, question=QUESTION))


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
