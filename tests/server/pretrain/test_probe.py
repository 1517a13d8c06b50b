"""The probe: fractions that keep every class, and an equal chance for both starts."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedscale.config.schema import Config, ModelConfig, PretrainConfig, ProbeConfig
from fedscale.models import build_model
from fedscale.rng import derive
from fedscale.server.pretrain import probe
from fedscale.session import Session

NAMES = ("a", "b", "c")


def test_a_fraction_takes_its_share_of_each_class_and_at_least_one():
    labels = np.repeat([0, 1, 2], [100, 40, 3])
    chosen = probe.stratified(labels, 0.1, seed=7)
    assert np.bincount(labels[chosen]).tolist() == [10, 4, 1]
    assert len(set(chosen.tolist())) == len(chosen)
    assert (chosen == probe.stratified(labels, 0.1, seed=7)).all()
    assert (chosen != probe.stratified(labels, 0.1, seed=8)).any()


def test_a_larger_fraction_holds_the_smaller_one():
    labels = np.repeat([0, 1, 2], 50)
    assert set(probe.stratified(labels, 0.1, 7).tolist()) < set(probe.stratified(labels, 0.5, 7).tolist())


def store(per_class: int, seed: int) -> SimpleNamespace:
    labels = np.tile(np.arange(3), per_class)
    images = np.random.default_rng(seed).integers(0, 60, (len(labels), 8, 8, 3), dtype=np.uint8)
    images[np.arange(len(labels)), :, :, labels] += 150
    return SimpleNamespace(images=images, labels=labels)


@pytest.fixture
def config(monkeypatch) -> Config:
    stores = {"train": store(20, 0), "test": store(30, 1)}
    monkeypatch.setattr(probe, "open_store", lambda manifest, split, *rest: stores[split])
    settings = PretrainConfig(probe=ProbeConfig(fractions=(0.5,), steps=12, batch_size=8), augment="none")
    return dataclasses.replace(Config(), model=ModelConfig(width=4), pretrain=settings)


def run(config: Config, pretrained: torch.nn.Module, tmp_path) -> dict:
    return probe.run_probe(config, SimpleNamespace(class_names=NAMES), pretrained, tmp_path, Session())[0]


def start(config: Config) -> torch.nn.Module:
    torch.manual_seed(derive(config.seed, "model"))
    return build_model(config.model, 3)


def test_both_starts_get_equal_training(config, tmp_path):
    """Given the same initial weights, the two accuracies are the same number; and the training teaches something."""
    row = run(config, start(config), tmp_path)
    assert row["scratch"] == row["pretrained"] > 50


def test_a_better_start_shows_and_the_models_given_are_not_changed(config, tmp_path):
    pretrained = start(config)
    seen = store(20, 2)
    images, labels = torch.from_numpy(seen.images), torch.from_numpy(seen.labels)
    optimizer = torch.optim.SGD(pretrained.parameters(), lr=0.05, momentum=0.9)
    for _ in range(30):
        shown = probe.normalise(images, config.data.mean, config.data.std)
        loss = torch.nn.functional.cross_entropy(pretrained(shown), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    before = {name: tensor.clone() for name, tensor in pretrained.state_dict().items()}
    few = dataclasses.replace(config.pretrain, probe=ProbeConfig(fractions=(0.05,), steps=1, batch_size=2, lr=1e-3))
    row = run(dataclasses.replace(config, pretrain=few), pretrained, tmp_path)
    assert row["pretrained"] > row["scratch"] + 20
    assert all(torch.equal(before[name], tensor) for name, tensor in pretrained.state_dict().items())


def test_both_starts_are_trained_where_the_pretrained_model_lies(config, tmp_path, monkeypatch):
    lay = []

    def accuracy(config, start, *rest):
        lay.append(next(start.parameters()).device.type)
        return 0.0

    monkeypatch.setattr(probe, "_accuracy", accuracy)
    run(config, start(config).to("meta"), tmp_path)
    assert lay == ["meta", "meta"]
