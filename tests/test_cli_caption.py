"""The captioning commands as a user types them: status, retry, near-duplicates, join."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedscale import files
from fedscale.cli import app
from fedscale.data.manifest import Manifest


def fedscale(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of a config that captions a small pool with the template engine, in the current folder."""
    (tmp_path / "small.yaml").write_text(
        "data: {recipe: shards/shapes.yaml, dir: data, samples_per_shard: 20, imbalance_factor: 4,\n"
        "       open_pool: {reserve: 6, validation: 1},\n"
        "       shapes: {train_per_class: 12, test_per_class: 2}}\n"
        "caption: {engine: template}\nthreads: 1\n"
    )
    monkeypatch.chdir(tmp_path)
    return ["small.yaml"]


@pytest.mark.parametrize("words", [["--json"], ["--status", "--retry-failed"]])
def test_options_that_would_say_nothing_are_refused(config, words):
    code, out = fedscale("caption", *config, *words)
    assert code == 2 and words[-1] in out and not Path("runs").exists()


def test_status_before_during_and_after(config):
    code, out = fedscale("caption", *config, "--status")
    assert code == 2 and "no shards" in out
    assert fedscale("caption", *config)[0] == 0
    code, out = fedscale("caption", *config, "--status", "--json")
    (found,) = json.loads(out)
    assert code == 0 and found["shards"]["done"] == found["shards"]["all"] > 1
    assert found["rows"]["ok"] == found["images"]["done"] == found["images"]["all"]
    code, out = fedscale("caption", *config, "--status")
    assert "done" in out and "100.0%" in out


def test_a_broken_shard_is_named_with_exit_code_2_and_retried_on_request(config):
    fedscale("caption", *config)  # builds the shards
    shard = Manifest.load("data").shards("pool")[1]
    path, home = Path("data") / shard.file, Path("runs/small/caption")
    whole = path.read_bytes()
    path.write_bytes(whole[:1500])
    for left in home.glob("00001.*"):
        left.unlink()
    (home / "done.json").unlink()
    code, out = fedscale("caption", *config)
    assert code == 2 and shard.file in " ".join(out.split()) and "--retry-failed" in out
    assert not (home / "done.json").exists()
    path.write_bytes(whole)
    assert fedscale("caption", *config, "--retry-failed")[0] == 0
    assert files.read_json(home / "done.json")["failed_shards"] == []


def test_what_is_taken_away_is_captioned_again_by_the_same_command(config):
    fedscale("caption", *config)
    home = Path("runs/small/caption")
    before, done = (home / "00000.jsonl").read_bytes(), files.read_json(home / "done.json")
    assert "complete, nothing to do" in fedscale("caption", *config)[1]
    assert files.read_json(home / "done.json") == done, "with the seconds that it took"
    (home / "00000.jsonl").unlink()
    assert fedscale("caption", *config)[0] == 0
    assert (home / "00000.jsonl").read_bytes() == before


def test_more_images_may_be_captioned_later_and_a_refused_config_leaves_the_run_as_it_was(config):
    assert fedscale("caption", *config, "caption.max_images=20")[0] == 0
    assert fedscale("caption", *config)[0] == 0
    assert files.read_json(Path("runs/small/caption/done.json"))["images"] == Manifest.load("data").num_samples("pool")
    saved = Path("runs/small/config.yaml").read_bytes()
    code, out = fedscale("caption", *config, "caption.seed=99")
    assert code == 2 and "caption.seed was 7, is 99" in " ".join(out.split())
    assert Path("runs/small/config.yaml").read_bytes() == saved


def test_a_mistake_claims_no_folder_and_a_limit_may_be_raised_later(config):
    code, out = fedscale("caption", *config, "data.pool=nowhere")
    assert code == 2 and "nowhere" in out
    assert fedscale("caption", *config)[0] == 0
    code, out = fedscale("caption", *config, "data.max_corrupt=0.2")
    assert code == 0 and "complete, nothing to do" in out


def test_near_duplicates_are_found_and_then_left_out(config, tmp_path):
    fedscale("caption", *config)
    code, out = fedscale(
        "shards", "near-duplicates", "data", "--of", "data", "--split", "validation", "--distance", "0"
    )
    assert code == 0, out
    code, out = fedscale("shards", "status", "data", "--json")
    marked = json.loads(out)["near_duplicates"]
    assert marked["of"].endswith("/validation") and marked["scanned"] == Manifest.load("data").num_samples("pool")
    code, out = fedscale("shards", "near-duplicates", "data", "--of", "data", "--features", "runs/small/caption")
    assert code == 2 and "caption.features.enabled=true" in out


def test_join_writes_training_tars(config):
    fedscale("caption", *config)
    code, out = fedscale("shards", "join", *config, "--out", "joined", "--json")
    done = json.loads(out[out.index("{") :])
    assert code == 0 and done["images"] == Manifest.load("data").num_samples("pool") and done["left_out"] == {}
    assert fedscale("shards", "verify", "joined")[0] == 0
    code, out = fedscale("shards", "join", *config, "--out", "joined")
    assert code == 2 and "is taken" in out
