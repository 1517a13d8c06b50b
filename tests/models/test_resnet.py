import subprocess
import sys

import pytest
import torch

from fedscale.config.schema import ModelConfig
from fedscale.models import build_model


@pytest.mark.parametrize(("num_classes", "parameters"), [(10, 1_227_594), (100, 1_250_724)])
def test_resnet8_has_the_published_number_of_parameters(num_classes, parameters):
    model = build_model(ModelConfig(width=64), num_classes)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_simple_cnn_has_the_number_of_parameters_of_its_benchmark():
    model = build_model(ModelConfig("simple_cnn"), 10, 32)
    assert sum(p.numel() for p in model.parameters()) == 1_626_442


@pytest.mark.parametrize(
    ("config", "side", "feature_dim"),
    [
        (ModelConfig(width=8), 32, 32),
        (ModelConfig(width=8), 48, 32),
        (ModelConfig("resnet50"), 64, 2048),
        (ModelConfig("linear"), 16, 768),
        (ModelConfig("mlp"), 16, 128),
        (ModelConfig("lenet"), 28, 84),
        (ModelConfig("simple_cnn"), 16, 128),
    ],
)
def test_a_model_is_its_features_and_its_classifier(config, side, feature_dim):
    model = build_model(config, 7, side).eval()
    images = torch.randn(2, 3, side, side).contiguous(memory_format=torch.channels_last)
    features = model.features(images)
    assert features.shape == (2, feature_dim) == (2, model.feature_dim)
    torch.testing.assert_close(model(images), model.classifier(features))
    assert model(images).shape == (2, 7)


def test_the_global_seed_alone_decides_the_initial_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.nn.utils.parameters_to_vector(build_model(ModelConfig(width=4), 3).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_the_models_package_imports_no_teacher_library():
    code = "import sys, fedscale.models; print({'open_clip', 'transformers', 'torchvision'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
