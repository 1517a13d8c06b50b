"""Students of timm by name, and ResNet-8 with group norm: built, and federated."""

import numpy as np
import pytest
import torch
from torch import nn

from fedscale.config import load_config, overlaid
from fedscale.config.schema import Config, ModelConfig
from fedscale.distributed.mesh import Mesh
from fedscale.errors import UserError
from fedscale.federated.data import RoundData
from fedscale.federated.setup import build_engine
from fedscale.models import build_model, initial_model
from fedscale.models.timm_student import TimmStudent


@pytest.mark.parametrize(
    ("name", "side", "feature_dim"),
    [
        ("test_resnet", 24, 96),
        ("test_vit", 32, 64),  # a fixed size, which it is given
        ("test_convnext", 32, 64),
        ("mobilenetv3_small_050", 32, 1024),  # timm's num_features says 288
    ],
)
def test_a_timm_model_is_its_features_and_its_classifier(name: str, side: int, feature_dim: int) -> None:
    model = build_model(ModelConfig(f"timm:{name}"), 7, side).eval()
    images = torch.randn(2, 3, side, side)
    assert model.features(images).shape == (2, feature_dim) == (2, model.feature_dim)
    torch.testing.assert_close(model(images), model.classifier(model.features(images)))
    assert model(images).shape == (2, 7)


def test_a_timm_model_begins_with_random_weights_of_the_seed_and_in_training_mode() -> None:
    def weights(seed: int) -> torch.Tensor:
        model = initial_model(overlaid(Config(), {"seed": seed, "model": {"name": "timm:test_vit"}}), 3)
        assert model.training and all(module.training for module in model.modules())
        return torch.nn.utils.parameters_to_vector(model.parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_no_parameter_is_without_dimensions_which_fsdp2_would_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's dm_nfnet has such gains; its smallest takes seconds to build."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(2.0))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.gain * images.mean(dim=(2, 3))

    monkeypatch.setattr("fedscale.models.timm_student._body", lambda name, side: Scaled())
    model = TimmStudent("scaled", 3, 8)
    assert {name: list(p.shape) for name, p in model.body.named_parameters()} == {"gain": [1]}
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model.features(images), 2 * images.mean(dim=(2, 3)))


def test_a_batch_norm_with_an_activation_inside_is_two_modules_and_the_same_numbers() -> None:
    """As a subclass of BatchNorm2d it would lose its activation where batch norms are replaced by others."""
    import timm
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    theirs = timm.create_model("mobilenetv3_small_050", num_classes=0)
    torch.manual_seed(0)
    ours = TimmStudent("mobilenetv3_small_050", 3, 32)
    assert any(isinstance(module, BatchNormAct2d) for module in theirs.modules())
    assert not any(isinstance(module, BatchNormAct2d) for module in ours.modules())
    images = torch.randn(4, 3, 32, 32)
    for _ in range(2):  # the second time the statistics have moved
        torch.testing.assert_close(ours.features(images), theirs(images))
        torch.testing.assert_close(ours.eval().features(images), theirs.eval()(images))
        theirs.train()
        ours.train()


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("resnet81", 32, r"model\.name=timm:resnet81: expected a model of timm .*; did you mean resnet18"),
        ("test_vit", 33, r"model\.name=timm:test_vit: takes no images of data\.image_size=33 pixels"),
        ("inception_v3", 32, r"model\.name=timm:inception_v3: takes no images of data\.image_size=32 pixels"),
    ],
)
def test_what_timm_cannot_build_is_one_line(name: str, side: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build_model(ModelConfig(f"timm:{name}"), 3, side)
    assert "\n" not in str(error.value)


def test_the_form_of_a_name_is_checked_without_timm() -> None:
    with pytest.raises(UserError, match=r"model\.name=resnet9: expected one of resnet8, .*, timm:NAME.*mean resnet8"):
        load_config(["configs/demo.yaml", "model.name=resnet9"])
    with pytest.raises(UserError, match=r"model\.name=timm:: expected"):
        ModelConfig("timm:")
    assert load_config(["configs/demo.yaml", "model.name=timm:convnext_atto"]).model.name == "timm:convnext_atto"


@pytest.mark.parametrize(("width", "groups"), [(64, [4, 8, 16]), (24, [1, 3, 6]), (4, [1, 1, 1])])
def test_group_norm_has_groups_of_16_channels_or_more(width: int, groups: list[int]) -> None:
    model = build_model(ModelConfig(width=width, norm="group"), 3)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert [layer.bn1.num_groups for layer in (model.layer1, model.layer2, model.layer3)] == groups
    batch = build_model(ModelConfig(width=width), 3)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in batch.parameters())


def test_with_group_norm_an_image_does_not_depend_on_its_batch() -> None:
    model = build_model(ModelConfig(width=8, norm="group"), 3).train()
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(model(images)[:1], model(images[:1]))


def test_group_norm_is_refused_for_other_students() -> None:
    with pytest.raises(UserError, match=r"model\.norm=group: expected batch: lenet has its own norms"):
        ModelConfig("lenet", norm="group")


def vector_after_a_round(name: str, **federate) -> torch.Tensor:
    """The global vector after one federated round of four clients on random images of 16 × 16."""
    small = {"rounds": 1, "clients_per_round": 4, "local_epochs": 1, "batch_size": 4, "lr": 0.05, **federate}
    config = overlaid(
        Config(),
        {"data": {"image_size": 16, "partition": {"clients": 4}}, "model": {"name": name}, "federate": small},
    )
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8), generator.integers(0, 3, 24)
    data = RoundData(images, labels, torch.device("cpu"), (0.5,) * 3, (0.25,) * 3, "flip", True)
    engine = build_engine(config, initial_model(config, 3).double(), data, np.split(np.arange(24), 4), Mesh())
    start = engine.server.vector.clone()
    result = engine.round(1)
    assert result is not None and result.diverged == [] and np.isfinite(result.loss)
    assert not torch.equal(engine.server.vector, start)
    return engine.server.vector


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit"])
def test_a_timm_student_is_federated_side_by_side_as_one_by_one(name: str) -> None:
    alone = vector_after_a_round(name, backend="loop")
    torch.testing.assert_close(vector_after_a_round(name, backend="batched", lanes=2), alone, atol=1e-9, rtol=1e-9)
