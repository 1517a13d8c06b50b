"""A model of another package: made by `(num_classes, image_size)`, and held against what a Classifier promises."""

from __future__ import annotations

import torch
from torch import nn

from fedscale import plugins
from fedscale.config.training import MODEL_GROUP, MODEL_KEY, STUDENTS
from fedscale.errors import UserError
from fedscale.models.resnet import Classifier


@torch.no_grad()
def plugged_model(name: str, num_classes: int, image_size: int) -> Classifier:
    """The model that `model.name` names outside fedscale.

    What its own code raises while it is made is passed on. Raises UserError where it cannot be imported, is no
    Classifier, or takes or gives other shapes: two images [2, 3, S, S] to features [2, D] and logits [2, classes].
    """
    where = f"{MODEL_KEY}={name}"
    make = plugins.load(plugins.target_of(name, MODEL_KEY, MODEL_GROUP, STUDENTS), MODEL_KEY)
    model = plugins.called(make, where, num_classes, image_size)
    if not isinstance(model, Classifier):
        raise UserError(f"{where}: made a {type(model).__name__}, expected a fedscale.models.Classifier")
    for part, kind in (("feature_dim", int), ("classifier", nn.Linear)):
        if not isinstance(getattr(model, part, None), kind):
            held = type(getattr(model, part, None)).__name__
            raise UserError(f"{where}: the model's {part} is a {held}, expected {kind.__name__}")
    images, training = torch.zeros(2, 3, image_size, image_size), model.training
    try:
        features = model.eval().features(images)
        logits = model(images)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{where}: cannot take images {list(images.shape)} ({reason})") from error
    model.train(training)
    for what, found, wanted in (
        ("features", features.shape, [2, model.feature_dim]),
        ("logits", logits.shape, [2, num_classes]),
    ):
        if list(found) != wanted:
            raise UserError(f"{where}: gave {what} {list(found)} of {list(images.shape)} images, expected {wanted}")
    return model
