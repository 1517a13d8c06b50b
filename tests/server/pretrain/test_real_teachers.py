"""Stage 1 with a real CLIP and a real LLaVA, tiny and hardly trained, through the loaders that load the large ones."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fedscale import files
from fedscale.config.schema import (
    CaptionConfig,
    ClipConfig,
    Config,
    MllmConfig,
    ModelConfig,
    PretrainConfig,
    ProbeConfig,
    PromptsConfig,
    TeachersConfig,
)
from fedscale.data.images import encode_png
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.shards import Sample, write_shard
from fedscale.runs import RunFolder
from fedscale.server import caption
from fedscale.server.caption import ledger, sidecar
from fedscale.server.pretrain import stage as pretrain
from fedscale.session import Session
from tests.server.teachers_support import QUESTION, train_tiny_teachers


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> TeachersConfig:
    clip, mllm = train_tiny_teachers(tmp_path_factory.mktemp("teachers"))
    return TeachersConfig(clip=ClipConfig(clip), mllm=MllmConfig(mllm))


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    rng = np.random.default_rng(0)
    words = ("red", "green", "blue")
    pictures = [encode_png(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for side in (32, 32, 40, 32) * 3]
    samples = [Sample(f"{n:08d}", image, "png", keyword=words[n % 3]) for n, image in enumerate(pictures)]
    root = tmp_path / "shards"
    written = write_shard(root / "pool/00000.tar", samples)
    info = ShardInfo("pool/00000.tar", written.samples, written.bytes, written.sha256, {})
    manifest = Manifest(root, "pool", words, "f" * 16, {"pool": (info,)}, {})
    manifest.save()
    return manifest


def config_of(manifest: Manifest, teachers: TeachersConfig, engine: str, how: str = "lora") -> Config:
    prompts = PromptsConfig(description=(QUESTION,), conversation=((QUESTION,),), reasoning=(QUESTION,))
    config = Config(name="t", model=ModelConfig(width=4), device="cpu", teachers=teachers)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, dir=str(manifest.root)),
        caption=CaptionConfig(engine=engine, prompts=prompts, batch_size=5, max_new_tokens=3, retry_temperatures=()),
        pretrain=PretrainConfig(
            epochs=3,
            batch_size=6,
            streams=2,
            language_model=how,
            contrastive_weight=0.5,
            visual_tokens=2,
            probe=ProbeConfig(enabled=False),
        ),
    )


def test_llava_answers_every_prompt_for_every_image_in_order(manifest, teachers, tmp_path):
    config, run = config_of(manifest, teachers, "hf"), RunFolder(tmp_path / "run")
    summary = caption.run(config, run, Session())
    (entry,) = ledger.captioned(config, manifest, run)
    rows = sidecar.read(sidecar.storage(config, run), entry.shard, entry.marker)
    assert [row.key for row in rows] == [f"{n:08d}" for n in range(12)]
    assert all(set(row.texts) == set(config.caption.kinds) for row in rows)
    assert all(1 <= tokens <= 3 for row in rows for tokens in row.tokens.values())
    assert summary["images"] == 12 and summary["tokens"] > 0
    again = RunFolder(tmp_path / "again")
    caption.run(config, again, Session())
    first, second = (one.stage("caption") / "00000.jsonl" for one in (run, again))
    assert first.read_bytes() == second.read_bytes(), "same config, same captions"


@pytest.mark.parametrize("how", ["frozen", "lora", "full"])
def test_f_is_distilled_beside_clip_in_front_of_llavas_language_model(manifest, teachers, tmp_path, how):
    config, run = config_of(manifest, teachers, "template", how), RunFolder(tmp_path / "run")
    caption.run(config, run, Session())
    summary = pretrain.run(config, run, Session())
    rows = files.read_jsonl(run.stage("pretrain") / "metrics.jsonl")
    assert len(rows) == summary["steps"] == 6
    assert all(np.isfinite([row["lm"], row["feature"], row["contrastive"]]).all() for row in rows)
    assert rows[-1]["feature"] < rows[0]["feature"]
