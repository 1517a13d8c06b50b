"""A linear layer between a model's body and its classifier, so that features are as wide as a teacher's embeddings."""

from __future__ import annotations

from torch import Tensor, nn

from fedscale.models.resnet import Classifier


class Projected(Classifier):
    """The body of `model`, a linear layer with bias and without activation to `width` features, a new classifier.

    CLIP2FL's model is ResNet-8 with 512: 1,361,738 parameters with 10 classes, 1,407,908 with 100.
    """

    def __init__(self, model: Classifier, width: int) -> None:
        super().__init__()
        num_classes = model.classifier.out_features
        model.classifier = nn.Identity()  # type: ignore[assignment]
        self.body, self.projection = model, nn.Linear(model.feature_dim, width)
        self.feature_dim, self.classifier = width, nn.Linear(width, num_classes)

    def features(self, images: Tensor) -> Tensor:
        return self.projection(self.body.features(images))
