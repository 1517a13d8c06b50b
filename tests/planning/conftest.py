"""Clusters and students of the tests."""

import dataclasses

import pytest

from fedscale.config import load_config
from fedscale.config.schema import Config
from fedscale.planning.cluster import Cluster
from fedscale.planning.hardware import hardware


@pytest.fixture(scope="session")
def demo() -> Config:
    return dataclasses.replace(load_config(["configs/demo.yaml"]), variants={}, seeds=())


@pytest.fixture
def four_nodes() -> Cluster:
    return Cluster(hardware("h200"), 4, 8)
