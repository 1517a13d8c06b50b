"""The demo's learning rates are those that the search chose on the validation split."""

import json
from pathlib import Path

import pytest

from fedscale.config import load_config
from fedscale.stages import children

SEARCH = json.loads(Path("bench/demo_search.json").read_text())


@pytest.mark.parametrize("variant", ["fedavg", "pretrain", "align", "full"])
def test_the_demo_uses_the_rates_that_the_search_chose(variant: str) -> None:
    chosen = SEARCH["chosen"][variant]
    demo = [child for child in children(load_config(["configs/demo.yaml"])) if child.variant == variant]
    assert {child.federate.lr for child in demo} == {chosen["federate.lr"]}
    if variant in ("align", "full"):
        assert {child.align.lr for child in demo} == {chosen["align.lr"]}
    grid = {name: value for name, value in SEARCH["all"].items() if name.startswith(f"{variant}-")}
    best = max(grid, key=lambda name: grid[name])
    assert best == f"{variant}-{chosen['align.lr' if variant in ('align', 'full') else 'federate.lr']}"


def test_the_search_read_neither_the_test_split_nor_the_demos_seeds() -> None:
    assert SEARCH["split"] == "validation"
    assert not set(SEARCH["seeds"]) & set(load_config(["configs/demo.yaml"]).seeds)
