"""YAML files, overlays and key=value words become one checked config, or one clear line."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from fedscale.config import load_config, load_recipe, overlaid, to_dict, to_yaml
from fedscale.config.schema import Config
from fedscale.errors import UserError
from fedscale.stages import children, needed


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("federate: {rounds: 5, lr: 1e-2}\ndata: {format: shapes}\n")
    return path


def test_files_merge_left_to_right_and_words_come_last(base: Path, tmp_path: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("federate: {rounds: 9}\nseed: 3\n")
    config = load_config([str(base), "seed=4", str(over), "federate.batch_size=8"])
    assert (config.federate.rounds, config.federate.lr, config.federate.batch_size, config.seed) == (9, 0.01, 8, 4)


def test_the_run_is_named_after_the_first_file(base: Path) -> None:
    assert load_config([str(base)]).name == "mine"
    assert load_config([str(base), "name=other"]).name == "other"


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("federate.roundz=3", "federate.roundz: unknown key; did you mean federate.rounds?"),
        ("federat.rounds=3", "federat: unknown key; did you mean federate?"),
        ("federate.rounds=many", "federate.rounds=many: expected a whole number"),
        ("federate.rounds=-1", "federate.rounds=-1: expected 0 or more"),
        ("federate.rounds=true", "federate.rounds=True: expected a whole number"),
        ("federate=3", "federate=3: expected keys and values"),
        ("data.imbalance_factor=0.5", "imbalance_factor=0.5: expected 1 (balanced) or more"),
        ("align.teacher=clipp", "align.teacher=clipp: expected one of clip, mllm; did you mean clip?"),
        ("seeds=[1,1]", "seeds=[1, 1]: expected different seeds"),
        ("data.mean=[1,2]", "data.mean=[1, 2]: expected 3 values"),
        ("caption.kinds=[poem]", "caption.kinds=['poem']: expected some of description, conversation, reasoning"),
        (
            "federate.clients_per_round=21",
            "federate.clients_per_round=21: expected at most data.partition.clients (20)",
        ),
        ("data.recipe=nowhere.yaml", "nowhere.yaml: no such shard recipe"),
        ("variants.a.align.betta=1", "variants.a: align.betta: unknown key; did you mean align.beta?"),
        ("=3", "=3: expected key=value"),
        ("data.source=/images", "source=/images: expected none with format=shapes"),
        ("data.partition.clients=0", "data.partition.clients=0: expected 1 or more"),
        ("caption.kinds=[description,description]", "caption.kinds=['description', 'description']: expected different"),
        ("pretrain.clip_grad_norm=-1", "pretrain.clip_grad_norm=-1.0: expected 0 or more"),
        ("pretrain.lora.dropout=1", "pretrain.lora.dropout=1.0: expected a share"),
        ("pretrain.probe.batch_size=0", "pretrain.probe.batch_size=0: expected 1 or more"),
        ("teachers.offline.batch_size=0", "teachers.offline.batch_size=0: expected 1 or more"),
        ("teachers.offline.images=-1", "teachers.offline.images=-1: expected 0 (all) or more"),
        ("name=../elsewhere", "name=../elsewhere: expected the name of a folder below out="),
        ("name=/elsewhere", "name=/elsewhere: expected the name of a folder below out="),
    ],
)
def test_a_wrong_word_is_refused_in_one_line(base: Path, word: str, line: str) -> None:
    with pytest.raises(UserError) as refusal:
        load_config([str(base), word])
    assert str(refusal.value).startswith(line)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_and_bad_yaml_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.yaml: no such config file"):
        load_config(["gone.yaml"])
    with pytest.raises(UserError, match="no config file given"):
        load_config(["seed=1"])
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\n")
    with pytest.raises(UserError, match="not valid YAML") as refusal:
        load_config([str(broken)])
    assert "\n" not in str(refusal.value)
    broken.write_text("federate: {rounds: 1}\nfederate: {lr: 0.2}\n")
    with pytest.raises(UserError, match="found duplicate key federate"):
        load_config([str(broken)])
    broken.write_text("- 1\n")
    with pytest.raises(UserError, match="found a list"):
        load_config([str(broken)])


def test_yaml_cannot_construct_python_objects(tmp_path: Path) -> None:
    evil = tmp_path / "evil.yaml"
    evil.write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config([str(evil)])


def test_a_recipe_gives_the_defaults_of_data(tmp_path: Path) -> None:
    recipe = tmp_path / "toy.yaml"
    recipe.write_text("format: folder\nimbalance_factor: 50\nopen_pool: {reserve: 7}\n")
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {{recipe: {recipe}, imbalance_factor: 10}}\n")
    data = load_config([str(config), "data.source=/images"]).data
    assert (data.name, data.format, data.imbalance_factor, data.source) == ("toy", "folder", 10, "/images")
    assert data.open_pool.reserve == 7


def test_the_saved_config_reads_back_as_itself(base: Path, tmp_path: Path) -> None:
    config = load_config([str(base), "pretrain.mixed_precision=no", "data.name=7"])
    saved = tmp_path / "saved.yaml"
    saved.write_text(to_yaml(config))
    assert load_config([str(saved)]) == config
    assert yaml.safe_load(saved.read_text()) == to_dict(config)


def test_an_overlay_changes_only_what_it_names() -> None:
    config = Config()
    changed = overlaid(config, {"pretrain": {"enabled": False}})
    assert not changed.pretrain.enabled
    assert changed.federate == config.federate and changed.pretrain.lr == config.pretrain.lr


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_is_valid_with_every_overlay(path: Path) -> None:
    load_config([str(path)])
    for overlay in Path("configs/overlays").glob("*.yaml"):
        load_config([str(path), str(overlay)])


@pytest.mark.parametrize("path", sorted(Path("shards").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    assert load_recipe([str(path)]).name == path.stem


@pytest.mark.parametrize("base", ["demo", "cifar10_lt", "cifar100_lt", "imagenet_lt"])
def test_the_control_rows_go_over_every_config(base: str) -> None:
    runs = {run.variant: run for run in children(load_config([f"configs/{base}.yaml", "configs/controls.yaml"]))}
    assert {"fedavg", "full", "pool_client", "server_only", "keyword_pretrain", "keyword_align", "no_kl"} < {*runs}
    assert needed(runs["server_only"]) == ["caption", "pretrain", "federate"]
    assert runs["server_only"].federate.rounds == 0 and runs["pool_client"].data.partition.pool_client
    keyword, method = runs["keyword_pretrain"].pretrain, runs["full"].pretrain
    assert dataclasses.replace(keyword, objective="distillation") == method, "same images, steps and augmentation"
    assert not runs["keyword_both"].align.taught and runs["full"].align.taught
