"""The world of three colours, captioned, with a federated model in it."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedscale.config.schema import AlignConfig, Config, ModelConfig
from fedscale.models import build_model
from fedscale.runs import RunFolder
from fedscale.server.align import cache
from fedscale.server.caption import run as caption
from fedscale.session import Session
from tests.server.align.support import POOL, SIZE, World, colour_teacher, make_data


@pytest.fixture
def make_world(tmp_path: Path):
    def make(pool: list[tuple[int, str, bytes | None]] = POOL, norm: str = "batch", **settings) -> World:
        manifest = make_data(tmp_path / "data", pool)
        config = Config(name="t", out=str(tmp_path / "runs"), device="cpu", model=ModelConfig(width=4, norm=norm))
        config = dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, dir=str(manifest.root), image_size=SIZE),
            caption=dataclasses.replace(config.caption, engine="template"),
            align=AlignConfig(
                **{"images_per_class": 6, "epochs": 8, "batch_size": 6, "lr": 0.05, "augment": "flip", **settings}
            ),
            eval=dataclasses.replace(
                config.eval, groups=dataclasses.replace(config.eval.groups, many_classes=1, few_classes=1)
            ),
        )
        run = RunFolder(tmp_path / "run")
        caption(config, run, Session())
        torch.manual_seed(0)
        model = build_model(config.model, 3)
        run.stage("federate").mkdir(parents=True)
        save_file(model.state_dict(), run.stage("federate") / "model.safetensors")
        return World(config, manifest, run)

    return make


@pytest.fixture
def world(make_world) -> World:
    return make_world()


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "load_teacher", lambda config, names, device: colour_teacher)
