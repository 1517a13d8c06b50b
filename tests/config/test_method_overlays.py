"""configs/methods/NAME.yaml makes any config the run of that method, alone or as a sweep's."""

from pathlib import Path

import pytest
import yaml

from fedscale.config import load_config
from fedscale.config.methods import BUILT_IN
from fedscale.config.sweep import SweepConfig
from fedscale.stages import children
from fedscale.sweep.plan import Sweep

FOLDER = Path("configs/methods")
BASES = ("configs/demo.yaml", "configs/cifar10_lt.yaml")
ABLATION = {"mllm_llava_fl": (True, True), "pretrain_only": (True, False), "align_only": (False, True)}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", BUILT_IN)
def test_every_method_has_an_overlay_that_runs_it_alone(method: str, base: str) -> None:
    config = load_config([base, str(FOLDER / f"{method}.yaml")])
    assert config.federate.method == method
    runs = children(config)
    assert {run.variant for run in runs} == {method}
    assert {run.seed for run in runs} == set(config.seeds) != set()
    for run in runs:
        assert run.federate == config.federate and not run.pretrain.enabled and not run.align.enabled


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", ABLATION)
def test_the_whole_and_its_halves_are_fedavg_with_their_stages(name: str, base: str) -> None:
    config = load_config([base, str(FOLDER / f"{name}.yaml")])
    assert config.federate.method == "fedavg" and {run.variant for run in children(config)} == {name}
    assert (config.pretrain.enabled, config.align.enabled) == ABLATION[name]


def test_a_method_takes_any_pretraining_and_alignment() -> None:
    words = ["pretrain.enabled=true", "align.enabled=true", "variant=fedprox_full"]
    config = load_config(["configs/demo.yaml", str(FOLDER / "fedprox.yaml"), *words])
    assert config.pretrain.enabled and config.align.enabled and config.federate.method == "fedprox"
    assert {run.variant for run in children(config)} == {"fedprox_full"}


def test_the_options_of_an_overlay_are_the_methods_own() -> None:
    for path in FOLDER.glob("*.yaml"):
        federate = yaml.safe_load(path.read_text())["federate"]
        if federate["method"] in BUILT_IN:
            assert set(federate.get("options", {})) <= set(BUILT_IN[federate["method"]][1].__dataclass_fields__), path


def test_a_sweep_over_overlays_names_its_runs_itself() -> None:
    names = ("fedprox", "mllm_llava_fl")
    methods = {name: str(FOLDER / f"{name}.yaml") for name in names}
    settings = SweepConfig(name="s", base=("configs/demo.yaml",), methods=methods, seeds=(1, 2))
    sweep = Sweep(settings, load_config(["configs/demo.yaml"]))
    for name in names:
        run = sweep.final(name, {}, {}, 2)
        assert (run.variant, run.variants, run.seed) == (name, {}, 2)
        assert run.align.enabled == (name == "mllm_llava_fl")
        assert not {"variant", "variants", "name"} & set(sweep.overlay(name, {}))
