"""The compact models: built, with a seed's initial weights, saved. Teachers are in `clip` and `mllm`.

Importing this package brings in neither open_clip nor transformers, so `federate` may; timm comes with its students.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedscale import files
from fedscale.config.schema import Config, ModelConfig
from fedscale.config.training import TIMM
from fedscale.models import small
from fedscale.models.plugged import plugged_model
from fedscale.models.projected import Projected
from fedscale.models.resnet import Classifier, ResNet8, ResNet50
from fedscale.models.timm_student import TimmStudent
from fedscale.rng import derive

__all__ = ["Classifier", "ResNet8", "ResNet50", "build_model", "initial_model", "save_tensors", "save_weights"]


SMALL = {"linear": small.linear, "mlp": small.mlp, "lenet": small.lenet, "simple_cnn": small.simple_cnn}


def build_model(config: ModelConfig, num_classes: int, image_size: int = 32) -> Classifier:
    """The model f of the config, initialised from torch's global generator: call `torch.manual_seed` before.

    `image_size`, the side in pixels, decides the shapes of the small models and of timm's that have a fixed size.
    Raises UserError for a model that timm does not have or that takes no such images, and for one of another package
    that is not what it should be (`plugged`).
    """
    model = _unprojected(config, num_classes, image_size)
    return Projected(model, config.projection) if config.projection else model


def _unprojected(config: ModelConfig, num_classes: int, image_size: int) -> Classifier:
    if config.name.startswith(TIMM):
        return TimmStudent(config.name.removeprefix(TIMM), num_classes, image_size)
    if config.name in SMALL:
        return SMALL[config.name](num_classes, image_size)
    if config.name == "resnet50":
        return ResNet50(num_classes)
    if config.name == "resnet8":
        return ResNet8(num_classes, config.width, config.norm)
    return plugged_model(config.name, num_classes, image_size)


def initial_model(config: Config, num_classes: int) -> Classifier:
    """f with the seed's own initial weights: those that pretraining and training from scratch both start from."""
    torch.manual_seed(derive(config.seed, "model"))
    return build_model(config.model, num_classes, config.data.image_size)


def save_weights(model: nn.Module, path: Path) -> None:
    """Publish a model's state as safetensors, every tensor contiguous and on the CPU."""
    save_tensors(model.state_dict(), path)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Publish tensors by name as safetensors, every one contiguous and on the CPU."""
    with files.published(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
