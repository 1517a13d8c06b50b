"""Control rows of federation: the pool as one more client, and no rounds at all."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedscale import files
from fedscale.config import Config, overlaid
from fedscale.data.manifest import Manifest
from fedscale.data.partition import Partition
from fedscale.data.store import open_store
from fedscale.distributed.mesh import Mesh
from fedscale.errors import UserError
from fedscale.federated import rounds
from fedscale.federated.inputs import open_inputs
from fedscale.federated.pool_client import open_pool_images, with_pool_client
from fedscale.models import initial_model
from fedscale.progress import SilentReporter
from fedscale.runs import RunFolder
from fedscale.session import Session
from tests.server.align.support import COLOURS, POOL, SIZE, make_data

OWN = 12  # training images
LABELLED = 36  # of the pool's 38


@pytest.fixture
def config(tmp_path: Path) -> Config:
    manifest = make_data(tmp_path / "data", POOL)
    groups = {"kind": "count", "many_over": 4, "few_under": 2}  # with the pool's own 12 a class, all would be many
    return overlaid(
        Config(),
        {
            "name": "t",
            "out": str(tmp_path / "runs"),
            "device": "cpu",
            "model": {"name": "linear"},
            "data": {"dir": str(manifest.root), "image_size": SIZE, "partition": {"kind": "iid", "clients": 3}},
            "federate": {"rounds": 2, "clients_per_round": 3, "local_epochs": 1, "batch_size": 4, "backend": "loop"},
            "pretrain": {"enabled": False},
            "align": {"enabled": False},
            "eval": {"groups": groups},
        },
    )


def pooled(config: Config, **caption: int) -> Config:
    return overlaid(config, {"data": {"partition": {"pool_client": True}}, "caption": caption})


def test_images_of_another_pool_or_others_of_this_one_are_another_store(config: Config, tmp_path: Path) -> None:
    """By its split: CLIP's view of the images, which an experiment keeps, is that of these images."""
    _, images = open_pool_images(config, SilentReporter())
    inputs = open_inputs(config, tmp_path, Mesh(), Session())

    def split(pool: Manifest, keywords: Sequence[str]) -> str:
        chosen = dataclasses.replace(images, keywords=keywords)
        store, _ = with_pool_client(pooled(config), inputs.train, inputs.partition, pool, chosen, tmp_path)
        return store.split

    pool, words = inputs.manifest, list(images.keywords)
    here = split(pool, words)
    assert split(pool, words) == here and here.startswith("train+pool-")
    assert split(dataclasses.replace(pool, fingerprint="f" * 16), words) != here
    assert split(pool, words[1:] + words[:1]) != here, "the rows with a class for a keyword are others"


def test_the_pools_labelled_images_are_the_last_client(config: Config, tmp_path: Path) -> None:
    inputs = open_inputs(pooled(config), tmp_path, Mesh(), Session())
    *own, last = inputs.partition.clients
    assert [len(rows) for rows in own] == [4, 4, 4] and np.array_equal(last, np.arange(OWN, OWN + LABELLED))
    assert inputs.class_counts == [4, 4, 4], "the long tail is that of the clients' own images"
    pool = open_store(inputs.manifest, "pool", SIZE, SilentReporter(), 0.0)
    words = [
        COLOURS.index(word.replace(" ", "_").lower()) for word in pool.keywords if word not in ("sunset", "meadow")
    ]
    kept = [row for row, word in enumerate(pool.keywords) if word not in ("sunset", "meadow")]
    assert inputs.train.labels[last].tolist() == words
    assert np.array_equal(inputs.train.images[last], pool.images[kept])
    train = open_store(inputs.manifest, "train", SIZE, SilentReporter(), 0.0)
    assert np.array_equal(inputs.train.images[:OWN], train.images)
    assert Partition.load(tmp_path / "partition.json", OWN).note == "", "the exported one is the clients' own"
    assert "client 3 is the open pool: 36 images" in inputs.partition.note


def test_it_holds_no_more_than_is_captioned(config: Config, tmp_path: Path) -> None:
    inputs = open_inputs(pooled(config, max_images=5), tmp_path, Mesh(), Session())
    assert len(inputs.partition.clients[-1]) == 19, "the first of two shards, whole"


def test_it_takes_part_like_the_others_and_fairness_is_the_clients(config: Config) -> None:
    run = RunFolder.of(config)
    summary = rounds.run(pooled(config), run, Session())
    assert summary is not None and "client 3 is the open pool" in summary["partition"]
    found = files.read_json(run.stage("federate") / "evaluation.json")
    assert found["groups"] == {"many": [], "medium": [0, 1, 2], "few": []}
    assert found["train_counts"] == [4, 4, 4]
    assert found["fairness"]["clients"] == 3
    alone = RunFolder(run.path.with_name("alone"))
    rounds.run(config, alone, Session())
    with_pool, without = (load_file(r.stage("federate") / "model.safetensors") for r in (run, alone))
    assert not torch.equal(next(iter(with_pool.values())), next(iter(without.values())))


def test_a_pool_without_class_words_is_one_line(config: Config, tmp_path: Path) -> None:
    manifest = make_data(tmp_path / "wild", [(0, "sunset", None), (1, "meadow", None)])
    config = pooled(overlaid(config, {"data": {"dir": str(manifest.root)}}))
    with pytest.raises(UserError, match=r"data.partition.pool_client=true: none of the pool's 2 images has a class"):
        open_inputs(config, tmp_path / "run", Mesh(), Session())


def test_no_rounds_hand_on_the_starting_model_evaluated(config: Config) -> None:
    config = overlaid(config, {"federate": {"rounds": 0, "backend": "auto"}})
    run = RunFolder.of(config)
    summary = rounds.run(config, run, Session())
    found, start = load_file(run.stage("federate") / "model.safetensors"), initial_model(config, 3).state_dict()
    assert found.keys() == start.keys() and all(torch.equal(found[name], start[name]) for name in start)
    evaluation = files.read_json(run.stage("federate") / "evaluation.json")
    assert summary is not None and (summary["rounds"], summary["all"]) == (0, evaluation["all"])
    assert files.read_jsonl(run.stage("federate") / "metrics.jsonl") == []
