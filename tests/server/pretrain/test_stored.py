"""Pretraining on stored embeddings is pretraining beside the live teacher, and runs no teacher."""

import dataclasses

import pytest
from safetensors.torch import load_file

from fedscale import files
from fedscale.config.schema import (
    ClipConfig,
    Config,
    FeaturesConfig,
    MllmConfig,
    ModelConfig,
    PretrainConfig,
    ProbeConfig,
    TeachersConfig,
)
from fedscale.house import PACKAGE
from fedscale.runs import RunFolder
from fedscale.server import caption
from fedscale.server.pretrain import lessons
from fedscale.server.pretrain import stage as pretrain
from fedscale.session import Session
from tests.server.caption.support import Captioned, make_pool, sample

TEACHERS = TeachersConfig(
    clip=ClipConfig(str(PACKAGE / "teachers/shapes/clip"), pretrained=None),
    mllm=MllmConfig(model=str(PACKAGE / "teachers/shapes/llava")),
)


def config_of(captioned: Captioned, teacher: str) -> Config:
    config = captioned.config(features=FeaturesConfig(enabled=True))
    settings = PretrainConfig(
        epochs=2,
        batch_size=6,
        streams=2,
        language_model="frozen",
        contrastive_weight=1.0,
        teacher=teacher,
        probe=ProbeConfig(enabled=False),
    )
    return dataclasses.replace(config, device="cpu", model=ModelConfig(width=4), teachers=TEACHERS, pretrain=settings)


@pytest.mark.slow
def test_stored_and_live_teachers_give_the_same_training(tmp_path, monkeypatch):
    pool = make_pool(tmp_path / "shards", [[sample(n) for n in range(12 * s, 12 * s + 12)] for s in range(2)])
    captioned = Captioned(pool, tmp_path / "run", dir=str(tmp_path / "captions"))
    runs = {teacher: RunFolder(tmp_path / teacher) for teacher in ("live", "stored")}
    for teacher, run in runs.items():
        config = config_of(captioned, teacher)
        caption.run(config, run, Session())
        with monkeypatch.context() as patch:
            if teacher == "stored":
                patch.setattr(lessons, "load_clip", lambda *_: pytest.fail("the stored teacher is not loaded"))
            pretrain.run(config, run, Session())
    live, stored = (files.read_jsonl(run.stage("pretrain") / "metrics.jsonl") for run in runs.values())
    assert len(live) == len(stored) == 8
    for one, other in zip(live, stored, strict=True):
        for name in ("loss", "lm", "feature", "contrastive"):
            assert other[name] == pytest.approx(one[name], abs=5e-3), (one["step"], name)  # half precision in store
    weights = [load_file(run.stage("pretrain") / "export" / "model.safetensors") for run in runs.values()]
    assert max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]) < 0.02
