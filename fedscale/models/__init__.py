"""The compact models (`build_model`); the teachers are in `clip` and `mllm`, the projector in `projector`.

Importing this package brings in neither open_clip nor transformers, so `federate` may.
"""

from __future__ import annotations

from fedscale.config.schema import ModelConfig
from fedscale.models.resnet import Classifier, ResNet8, ResNet50

__all__ = ["Classifier", "ResNet8", "ResNet50", "build_model"]


def build_model(config: ModelConfig, num_classes: int) -> Classifier:
    """The model f of the config, initialised from torch's global generator: call `torch.manual_seed` before."""
    if config.name == "resnet50":
        return ResNet50(num_classes)
    return ResNet8(num_classes, config.width)
