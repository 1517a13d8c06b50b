"""What all stages read is made once, and copied whole to a node's own disk."""

import shutil
from pathlib import Path

import pytest

from fedscale.cluster.prepare import is_prepared, prepare, stage_in
from fedscale.config import Config, load_config
from fedscale.data.build import shard_folder
from fedscale.data.manifest import Manifest
from fedscale.errors import UserError
from fedscale.progress import SilentReporter
from fedscale.session import Session

WORDS = ["configs/demo.yaml", "variant=full", "seeds=[1]", "data.samples_per_shard=2000"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = load_config([*WORDS, f"data.dir={tmp_path_factory.mktemp('data') / 'shards'}"])
    assert not is_prepared(config)
    prepare(config, Session())
    return config


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_shards_and_store_are_copied_once_and_found_by_data_dir(built: Config, tmp_path: Path) -> None:
    assert is_prepared(built)
    copy = stage_in(built, tmp_path, SilentReporter())
    assert copy == tmp_path / "shards" and contents(copy) == contents(shard_folder(built.data))
    assert any(name.endswith("images.npy") for name in contents(copy)), "the client store is with them"
    assert Manifest.load(copy).fingerprint == Manifest.load(shard_folder(built.data)).fingerprint
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    stage_in(built, tmp_path, SilentReporter())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert not (tmp_path / "hub").exists(), "the demo's teachers are local"


def test_hub_weights_come_along_and_are_asked_for_when_missing(
    built: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    config = load_config([*WORDS, f"data.dir={built.data.dir}", "teachers.mllm.model=some/llava"])
    with pytest.raises(UserError, match="models--some--llava: no such folder; run `fedscale fetch`"):
        stage_in(config, tmp_path / "disk", SilentReporter())
    snapshot = cache / "models--some--llava" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (cache / "models--some--llava" / "blob").write_text("weights")
    (snapshot / "model.safetensors").symlink_to("../../blob")
    stage_in(config, tmp_path / "disk", SilentReporter())
    copy = tmp_path / "disk" / "hub" / "models--some--llava" / "snapshots" / "abc" / "model.safetensors"
    assert copy.is_symlink() and copy.read_text() == "weights"


def test_a_disk_that_is_too_small_is_refused_before_anything_is_copied(
    built: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"--to=.*GB are free"):
        stage_in(built, tmp_path / "disk", SilentReporter())
    assert not (tmp_path / "disk").exists()
