"""Top-1 accuracy over all classes and over many / medium / few, per class, calibration, and fairness over clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedscale.calibration import NUM_BINS, binned, expected_calibration_error
from fedscale.config.schema import Config, GroupsConfig
from fedscale.data.augment import normalise
from fedscale.errors import UserError
from fedscale.fairness import Fairness, client_accuracies, fairness

GROUPS = ("many", "medium", "few")


class LabelledImages(Protocol):
    """What is evaluated on: uint8 images [N, H, W, 3] and labels [N]."""

    @property
    def images(self) -> np.ndarray: ...

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def split(self) -> str: ...


@dataclass(frozen=True)
class Evaluation:
    """Accuracies in percent, a group's the mean over its classes; `confusion[true][predicted]` counts images."""

    split: str
    all: float
    many: float | None
    medium: float | None
    few: float | None
    per_class: list[float]
    confusion: list[list[int]]
    class_names: list[str]
    train_counts: list[int]
    groups: dict[str, list[int]]
    balanced_accuracy: float  # the mean over the classes, whatever their shares of the split
    balanced_error: float  # 100 − balanced accuracy
    ece: float  # expected calibration error in 15 bins of confidence, percent
    fairness: Fairness | None = None  # over the clients, of final models

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def scores(self) -> dict[str, float | None]:
        """All, many, medium and few, balanced and calibration error, as the metrics rows carry them."""
        groups = {"all": self.all, "many": self.many, "medium": self.medium, "few": self.few}
        return {**groups, "balanced_error": self.balanced_error, "ece": self.ece}

    def over_clients(self, labels: np.ndarray, clients: Sequence[np.ndarray]) -> Evaluation:
        """The same with its fairness over the clients, which are rows of the training set's `labels`."""
        return replace(self, fairness=fairness(client_accuracies(self.per_class, labels, clients)))


def class_groups(train_counts: Sequence[int], config: GroupsConfig) -> dict[str, list[int]]:
    """Class indices of many, medium and few, by the training images a class (METHOD.md, protocol).

    `count` uses thresholds (ImageNet-LT: many > 100, few < 20); `rank` takes the first and the last classes by count.
    Raises UserError when `rank` leaves no class between them.
    """
    if config.kind == "count":
        many = [c for c, n in enumerate(train_counts) if n > config.many_over]
        few = [c for c, n in enumerate(train_counts) if n < config.few_under]
    else:
        if config.many_classes + config.few_classes > len(train_counts):
            raise UserError(
                f"eval.groups: many_classes + few_classes = {config.many_classes + config.few_classes}, "
                f"expected at most the {len(train_counts)} classes of the data"
            )
        ranked = sorted(range(len(train_counts)), key=lambda c: (-train_counts[c], c))
        many = sorted(ranked[: config.many_classes])
        few = sorted(ranked[len(ranked) - config.few_classes :])
    rest = [c for c in range(len(train_counts)) if c not in {*many, *few}]
    return {"many": many, "medium": rest, "few": few}


@torch.inference_mode()
def predict(model: nn.Module, images: np.ndarray, config: Config) -> tuple[Tensor, Tensor]:
    """Predicted classes [N] of uint8 images [N, H, W, 3] and their probabilities [N] (float64), both on the CPU.

    In evaluation mode; the model's mode is restored.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    predicted, confidences = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.float64)]
    for start in range(0, len(images), config.eval.batch_size):
        batch = torch.from_numpy(np.array(images[start : start + config.eval.batch_size])).to(device)
        logits = model(normalise(batch, config.data.mean, config.data.std)).cpu()
        predicted.append(logits.argmax(1))
        confidences.append(logits.double().softmax(1).amax(1))
    model.train(training)
    return torch.cat(predicted), torch.cat(confidences)


def evaluate(
    model: nn.Module,
    store: LabelledImages,
    class_names: Sequence[str],
    train_counts: Sequence[int],
    config: Config,
    part: slice = slice(None),
    summed: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> Evaluation:
    """Evaluate on every image of the store. Raises UserError when a class has no image there.

    Each of several ranks evaluates its `part` of the rows; `summed` adds up their counts (int64, in place), of which
    everything else is computed: no mean of one rank's images enters.
    """
    classes = len(class_names)
    labels = torch.from_numpy(np.array(store.labels[part]))
    predicted, confidences = predict(model, store.images[part], config)
    counts = torch.bincount(labels * classes + predicted, minlength=classes * classes)
    bins = binned(confidences, predicted == labels)
    counts = summed(torch.cat([counts, bins.flatten()]))
    confusion, bins = counts[: classes * classes].view(classes, classes), counts[classes * classes :].view(3, NUM_BINS)
    totals = confusion.sum(1)
    if (totals == 0).any():
        missing = class_names[int((totals == 0).nonzero()[0])]
        raise UserError(f"{store.split} split: no image of class {missing}; expected at least one of every class")
    per_class = (100.0 * confusion.diag() / totals).tolist()
    groups = class_groups(train_counts, config.eval.groups)
    balanced = float(np.mean(per_class))
    means = {g: float(np.mean([per_class[c] for c in groups[g]])) if groups[g] else None for g in GROUPS}
    return Evaluation(
        split=store.split,
        all=float(100.0 * confusion.diag().sum() / totals.sum()),
        many=means["many"],
        medium=means["medium"],
        few=means["few"],
        per_class=per_class,
        confusion=confusion.tolist(),
        class_names=list(class_names),
        train_counts=list(train_counts),
        groups=groups,
        balanced_accuracy=balanced,
        balanced_error=100.0 - balanced,
        ece=expected_calibration_error(bins),
    )
