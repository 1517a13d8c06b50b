"""Methods, models and data sets of other packages: taken by name; what is wrong with one is said in one line."""

import pickle
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedscale import api, plugins
from fedscale.config import Config, RecipeConfig, overlaid
from fedscale.config.schema import FederateConfig, ModelConfig, OpenPoolConfig
from fedscale.data.build import build_shards
from fedscale.data.images import encode_png
from fedscale.data.sources import ArraySource, Original, open_source
from fedscale.errors import UserError
from fedscale.federated.fit import check_names
from fedscale.federated.methods import Method, Problem, make_method, method_class
from fedscale.federated.methods.table import costs_of, method_rows, row_of
from fedscale.models import Classifier, build_model, initial_model
from fedscale.progress import SilentReporter


class Mine(Method):
    """A method that adds nothing."""

    @dataclass(frozen=True)
    class Options:
        strength: float = 0.5


class NoDataclass(Method):
    Options = dict


def net(features: int, classifier: nn.Module) -> Callable[[int, int], nn.Module]:
    """A model whose body gives so many features of an image of any size."""

    def make(num_classes: int, image_size: int) -> nn.Module:
        class Net(Classifier):
            def __init__(self) -> None:
                super().__init__()
                self.feature_dim, self.classifier = 4, classifier
                self.body = nn.Linear(3 * image_size**2, features)

            def features(self, images: torch.Tensor) -> torch.Tensor:
                return self.body(images.flatten(1))

        return Net()

    return make


class Pictures:
    """Two classes of three training images and a test image each; `read` is a generator."""

    class_names = ("even", "odd")

    def __init__(self, recipe: RecipeConfig, wrong: str = "") -> None:
        self.wrong = wrong

    def labels(self, split: str) -> Any:
        labels = [0, 1, 0, 1, 0, 1] if split == "train" else [0, 1]
        return np.array(labels, dtype=np.float32) if self.wrong == "labels" else labels

    def read(self, split: str, indices: np.ndarray) -> Any:
        for index in indices.tolist()[: 1 if self.wrong == "count" else None]:
            data = encode_png(np.full((8, 8, 3), index, np.uint8))
            yield data if self.wrong == "bytes" else Original(f"{split}/{index}", data)


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The package `theirs`, with good and bad things in it."""
    module = types.ModuleType("theirs")
    vars(module).update(
        Mine=Mine,
        NoDataclass=NoDataclass,
        number=3,
        good=net(4, nn.Linear(4, 3)),
        few_logits=net(4, nn.Linear(4, 2)),
        wide=net(5, nn.Linear(5, 3)),
        no_linear=net(4, nn.Sequential(nn.Linear(4, 3))),
        plain=lambda num_classes, image_size: nn.Linear(2, num_classes),
        one_argument=lambda num_classes: None,
        raises=lambda num_classes, image_size: 1 / 0,
        Pictures=Pictures,
        empty=lambda recipe: object(),
        labels=lambda recipe: Pictures(recipe, "labels"),
        bytes=lambda recipe: Pictures(recipe, "bytes"),
        count=lambda recipe: Pictures(recipe, "count"),
    )
    monkeypatch.setitem(sys.modules, "theirs", module)
    return module


def test_a_method_is_taken_by_its_name_with_its_options() -> None:
    config = FederateConfig(method="theirs:Mine")
    assert config.options == {"strength": 0.5}
    assert method_class("theirs:Mine") is Mine and Mine(config).options.strength == 0.5
    assert Mine.name == "mine", "so that messages can speak of it"


def test_a_model_is_built_by_its_name_from_the_runs_seed() -> None:
    config = overlaid(Config(), {"model": {"name": "theirs:good"}, "data": {"image_size": 12}})
    one, other = initial_model(config, 3), initial_model(config, 3)
    assert one.training and one(torch.zeros(5, 3, 12, 12)).shape == (5, 3)
    assert torch.equal(one.body.weight, other.body.weight)


def test_a_data_set_becomes_shards_by_its_name(tmp_path: Path) -> None:
    recipe = RecipeConfig(format="theirs:Pictures", open_pool=OpenPoolConfig(enabled=False))
    manifest = build_shards(recipe, tmp_path / "shards", SilentReporter())
    assert manifest.class_names == ("even", "odd")
    assert manifest.class_counts("train") == [3, 3] and manifest.class_counts("test") == [1, 1]


def test_a_generators_images_can_be_read_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(RecipeConfig(format="theirs:Pictures"))
    answer = pickle.loads(pickle.dumps(source.read("train", np.array([4, 1]))))
    assert [original.name for original in answer] == ["train/4", "train/1"]


def test_arrays_are_a_source_and_what_is_read_carries_its_own_rows_alone() -> None:
    images = np.zeros((40, 32, 32, 3), np.uint8)
    images[7] = 200
    source = ArraySource(["a", "b"], (images, np.arange(40) % 2), (images[:2], np.array([0, 1])))
    assert source.labels("train")[:3].tolist() == [0, 1, 0]
    answer = source.read("train", np.array([7]))
    assert len(pickle.dumps(answer)) < 2 * images[0].nbytes
    (original,) = answer
    assert original == Original("train/7", encode_png(images[7]))
    with pytest.raises(UserError, match=r"train images: float64 \[40, 32, 32, 3\], expected uint8"):
        ArraySource(["a"], (images / 255, np.zeros(40)), (images, np.zeros(40)))
    with pytest.raises(UserError, match="test: 40 images with 3 labels"):
        ArraySource(["a"], (images, np.zeros(40)), (images, np.zeros(3)))


METHOD = [
    ("gone:Mine", "federate.method=gone:Mine: gone cannot be imported"),
    ("theirs:Gone", "theirs has no Gone"),
    ("theirs:number", "theirs:number is no subclass of fedscale.federated.methods.Method"),
    ("theirs:NoDataclass", "its Options is no dataclass"),
    ("fedagv", "did you mean fedavg?"),
]
MODEL = [
    ("theirs:number", "model.name=theirs:number: cannot be called with"),
    ("theirs:one_argument", "cannot be called with (int, int): too many positional arguments"),
    ("theirs:plain", "made a Linear, expected a fedscale.models.Classifier"),
    ("theirs:no_linear", "the model's classifier is a Sequential, expected Linear"),
    ("theirs:few_logits", "gave logits [2, 2] of [2, 3, 12, 12] images, expected [2, 3]"),
    ("theirs:wide", "gave features [2, 5] of [2, 3, 12, 12] images, expected [2, 4]"),
    ("resnet9", "did you mean resnet8?"),
    ("timm:", "expected timm:NAME"),
]
FORMAT = [
    ("theirs:number", "format=theirs:number: cannot be called with (RecipeConfig)"),
    ("theirs:empty", "made a object without class_names"),
    ("theirs:labels", "the train labels are float32 [6], expected a whole number for each image"),
    ("theirs:bytes", "`read` gave a bytes, expected fedscale.data.sources.Original"),
    ("theirs:count", "`read` gave 1 of 6 train images asked for"),
    ("parket", "did you mean parquet?"),
]


@pytest.mark.parametrize(("name", "line"), METHOD)
def test_a_bad_method_is_one_clear_line(name: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        method_class(FederateConfig(method=name).method)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "line"), MODEL)
def test_a_bad_model_is_one_clear_line(name: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        build_model(ModelConfig(name), 3, 12)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "line"), FORMAT)
def test_a_bad_data_set_is_one_clear_line_and_leaves_nothing_behind(name: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        build_shards(
            RecipeConfig(format=name, open_pool=OpenPoolConfig(enabled=False)), tmp_path / "shards", SilentReporter()
        )
    assert line in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ({"client_state": ("mine",)}, "its client_state names mine, expected some of start"),
        ({"keeps": ("sum",)}, "its keeps names sum, expected some of nothing"),
        ({"views": ("weak", "strong")}, "its views names weak, expected some of strong"),
        ({"survey_at": ("end", "always")}, "its survey_at names always, expected some of start, round, end"),
        ({"__init__": lambda self, config: None}, "cannot be called with (FederateConfig, Problem)"),
    ],
)
def test_a_method_that_names_what_is_not_there_is_one_clear_line(
    parts: dict[str, Any], line: str, package: types.ModuleType
) -> None:
    package.Odd = type("Odd", (Method,), {"roles": ("start",), **parts})  # type: ignore[attr-defined]
    with pytest.raises(UserError) as error:
        check_names(make_method(FederateConfig(method="theirs:Odd"), Problem(3, 4, 2)))
    assert str(error.value).startswith("federate.method=theirs:Odd: ") and line in str(error.value)


def test_what_a_model_raises_itself_is_shown_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        build_model(ModelConfig("theirs:raises"), 3, 12)


def test_installed_packages_are_known_by_short_names(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {
        "fedscale.methods": "theirs:Mine", "fedscale.models": "theirs:good", "fedscale.datasets": "theirs:Pictures"
    }  # fmt: skip

    def entry_points(group: str) -> list[metadata.EntryPoint]:
        return [metadata.EntryPoint("short", entries[group], group)] if group in entries else []

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    assert method_class("short") is Mine
    assert build_model(ModelConfig("short"), 3, 12).classifier.out_features == 3
    assert open_source(RecipeConfig(format="short")).class_names == ("even", "odd")
    with pytest.raises(UserError, match=r"expected one of fedavg, .*short"):
        FederateConfig(method="shirt_")
    row = method_rows()[-1]
    assert (row["method"], row["from"], row["options"]) == ("short", "theirs:Mine", {"strength": 0.5})
    entries["fedscale.methods"] = "gone:Gone"
    assert "gone cannot be imported" in method_rows()[-1]["error"], "one broken package does not hide the others"


def test_every_method_says_what_it_costs_where() -> None:
    rows = {row["method"]: row for row in method_rows()}
    assert rows["fedavg"] | {"citation": ""} == {
        "method": "fedavg", "citation": "", "client": "", "upload": "", "server": "", "options": {},
        "backends": ["loop", "batched", "graph"], "shard": "any", "from": "built in",
    }  # fmt: skip
    assert rows["scaffold"]["upload"] and rows["fedadam"]["server"] and rows["fedprox"]["client"]
    assert rows["mllm_llava_fl"]["from"].startswith("pretrain + fedavg + align")
    assert not rows["mllm_llava_fl"]["client"] and not rows["mllm_llava_fl"]["upload"]


def test_a_method_that_cannot_be_sharded_says_why(package: types.ModuleType) -> None:
    class Featured(Mine):
        uses_features = True

    package.Featured = Featured  # type: ignore[attr-defined]
    assert row_of("theirs:Featured", "theirs")["shard"] == "1: needs features"
    assert row_of("theirs:Mine", "theirs")["shard"] == "any"


def test_costs_are_read_by_part_and_other_forms_refused() -> None:
    assert costs_of("none") == {"client": "", "upload": "", "server": ""}
    assert costs_of("client: a, b; server: c") == {"client": "a, b", "upload": "", "server": "c"}
    assert costs_of("server: a; and b")["server"] == "a; and b"
    for wrong in ("a lot", "clients: a", "once: client: a"):
        with pytest.raises(UserError, match="extra_cost="):
            costs_of(wrong)


def test_an_overlay_takes_classes_and_functions_at_the_top_of_a_module() -> None:
    assert plugins.word_of(Path) == "pathlib:Path"
    config = api.load_config("configs/demo.yaml", overlay={"model": {"name": ArraySource}, "seed": 3})
    assert (config.model.name, config.seed) == ("fedscale.data.sources.arrays:ArraySource", 3)

    def inner() -> None: ...

    for nameless in (inner, lambda: None):
        with pytest.raises(UserError, match="define it at the top of a module"):
            api.load_config(overlay={"data": {"format": nameless}})


def test_a_config_of_several_runs_has_no_one_model() -> None:
    config = api.load_config("configs/demo.yaml")
    with pytest.raises(UserError, match=r"8 runs \(fedavg seed 1.*children"):
        api.load_model(config)
    with pytest.raises(UserError, match=r"fedavg-s1/federate/model.safetensors: no such file|no such file"):
        api.load_model(api.children(config)[0])
    with pytest.raises(UserError, match="leaves no model"):
        api.load_model(api.children(config)[0], "caption")


def test_the_model_of_a_run_is_its_last_stages(tmp_path: Path) -> None:
    config = api.load_config("configs/demo.yaml", f"out={tmp_path}", "seeds=[1]")
    for variant, stage in (("pretrain", "federate"), ("align", "align")):
        (child,) = api.children(replace(config, variant=variant))
        with pytest.raises(UserError, match=f"{stage}.*model.safetensors: no such file; carry out the stage {stage}"):
            api.load_model(child)


def test_a_stage_that_no_run_has_says_so(tmp_path: Path) -> None:
    config, reporter = api.load_config("configs/demo.yaml", "variant=fedavg", f"out={tmp_path}"), SilentReporter()
    api.stage(config, "caption", api.Session(reporter))
    assert reporter.lines == ["caption: nothing to do, no run of this config has that stage"]
    assert not list(tmp_path.iterdir())
