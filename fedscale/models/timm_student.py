"""Any model of timm as a student, by `model.name=timm:NAME`: its body without weights, and a linear classifier."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from fedscale.errors import UserError
from fedscale.models.resnet import Classifier

NEAR = 3  # close matches that an unknown name is answered with


class TimmStudent(Classifier):
    """timm's model `name` up to its pooled features, randomly initialised, for images of `image_size` pixels.

    The size is given to models that have one (vision transformers), and no other. Batch norms with an activation
    inside become two modules, as other models have them: what replaces batch norms (over ranks, over lanes) knows no
    other. A parameter without dimensions gets one of size 1: FSDP2 refuses 0-D parameters (pytorch #132934), and it
    broadcasts alike. Raises UserError, naming `model.name`, for an unknown name and for a model that makes no feature
    vector of such images.
    """

    def __init__(self, name: str, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.body = _body(name, image_size)
        _split_norms(self.body)
        for module in self.body.modules():
            for key, parameter in module.named_parameters(recurse=False):
                if parameter.dim() == 0:
                    setattr(module, key, nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad))
        self.feature_dim = _feature_dim(self.body, name, image_size)
        self.classifier = nn.Linear(self.feature_dim, num_classes)

    def features(self, images: Tensor) -> Tensor:
        return self.body(images)


def _body(name: str, image_size: int) -> Any:
    import timm  # only here: it takes seconds, and brings torchvision

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=NEAR)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UserError(f"model.name=timm:{name}: expected a model of timm {timm.__version__}{hint}")
    settings = timm.get_pretrained_cfg(name)
    sized = {"img_size": image_size} if settings and settings.fixed_input_size else {}
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **sized)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(_refusal(name, image_size, error)) from error


def _split_norms(module: nn.Module) -> None:
    from timm.layers import BatchNormAct2d

    for name, child in module.named_children():
        if isinstance(child, BatchNormAct2d):
            norm = nn.BatchNorm2d(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            norm.weight, norm.bias = child.weight, child.bias
            setattr(module, name, nn.Sequential(norm, child.drop, child.act))
        else:
            _split_norms(child)


@torch.no_grad()
def _feature_dim(body: nn.Module, name: str, image_size: int) -> int:
    """The width of what the body makes of an image; `num_features`, timm's own attribute, is not it everywhere."""
    training = body.training
    try:
        features = body.eval()(torch.zeros(1, 3, image_size, image_size))
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(_refusal(name, image_size, error)) from error
    body.train(training)
    shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
    if not isinstance(features, Tensor) or features.dim() != 2:
        raise UserError(f"model.name=timm:{name}: gives {shape} for an image, expected a feature vector [1, width]")
    return features.shape[1]


def _refusal(name: str, image_size: int, error: Exception) -> str:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return (
        f"model.name=timm:{name}: takes no images of data.image_size={image_size} pixels ({reason}); "
        "choose a size that divides into its patches and strides, or another model"
    )
