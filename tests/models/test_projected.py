"""A projection is a plain linear layer between any body and a classifier of its own."""

import pytest
import torch

from fedscale.config.schema import ModelConfig
from fedscale.errors import UserError
from fedscale.federated.flat import FlatLayout
from fedscale.federated.lanes.check import checked
from fedscale.federated.lanes.convert import LaneForm
from fedscale.models import build_model


@pytest.mark.parametrize(("classes", "parameters"), [(10, 1_361_738), (100, 1_407_908)])
def test_resnet8_with_512_is_clip2fls_model(classes: int, parameters: int) -> None:
    model = build_model(ModelConfig(projection=512), classes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.feature_dim == 512 and model.classifier.in_features == 512


@pytest.mark.parametrize("name", ["resnet8", "mlp", "lenet", "linear"])
def test_features_are_linear_in_the_bodys_and_the_classifiers_inputs(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(name=name, width=4, projection=7), 3, 16).eval()
    images = torch.randn(5, 3, 16, 16)
    features = model.features(images)
    body = model.body.features(images)
    torch.testing.assert_close(features, body @ model.projection.weight.T + model.projection.bias)
    torch.testing.assert_close(model(images), model.classifier(features))
    assert (features < 0).any() and (features > 0).any(), "no activation"


def test_clients_train_side_by_side_in_its_lane_form() -> None:
    model = build_model(ModelConfig(width=4, projection=7), 3, 8)
    form = checked(LaneForm(model), model, (3, 8, 8))
    assert isinstance(form, LaneForm)
    assert {"projection.weight", "projection.bias"} <= {entry.name for entry in FlatLayout.of(model).parameters}


def test_a_negative_width_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.projection"):
        ModelConfig(projection=-1)
