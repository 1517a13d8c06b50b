"""What is learned, read off the model, and whether a method can be run with such a model in such a way."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedscale.config.schema import FederateConfig
from fedscale.errors import UserError
from fedscale.federated.data import RoundData
from fedscale.federated.methods import Method, Problem
from fedscale.models.resnet import Classifier


@torch.no_grad()
def problem_of(model: nn.Module, image_shape: tuple[int, int, int], num_clients: int) -> Problem:
    """Classes and features of a model for images [C, H, W]; a model that is no Classifier has no features."""
    if isinstance(model, Classifier):
        return Problem(model.classifier.out_features, model.feature_dim, num_clients)
    training, example = model.training, next(model.parameters())
    logits = model.eval()(torch.zeros(1, *image_shape, dtype=example.dtype, device=example.device))
    model.train(training)
    return Problem(logits.shape[-1], 0, num_clients)


def needs_of(method: Method) -> list[str]:
    """What the method needs of a client that is not cut over ranks (`federate.shard`), if anything."""
    whole_model = (
        (method.uses_features or method.compares, "features"),
        (method.works, "the server's own training"),
        ({"end", "round"} & set(method.survey_at), "the global model's features"),
        (method.reports, "each client's whole model"),
        (method.sides, "a teacher's view of the samples"),
        (method.views, "a second view of each image"),
        (method.keeps, "what each client keeps of its own loss"),
    )
    return [what for needed, what in whole_model if needed]


def check_names(method: Method) -> None:
    """Raises UserError where a method names what is not there."""
    for key, known in (
        ("models", method.roles),
        ("client_state", method.roles),
        ("uploads", method.roles),
        ("compares", method.models),
        ("broadcast", method.server_state),
        ("inspects", method.server_state),
        ("keeps", method.tallies),
        ("sides", ("clip",)),
        ("views", ("strong",)),
        ("survey_at", ("start", "round", "end")),
    ):
        foreign = [name for name in getattr(method, key) if name not in known]
        if foreign:
            raise UserError(
                f"federate.method={method.config.method}: its {key} names {foreign[0]}, expected some of "
                f"{', '.join(known) or 'nothing, as there is none'}"
            )


def check_fit(
    method: Method, model: nn.Module, settings: FederateConfig, data: RoundData, teacher: Mapping[str, Tensor]
) -> None:
    """Raises UserError where the method asks for what the model, `federate.shard`, data or teacher do not give."""
    check_names(method)
    needs = needs_of(method)
    if needs and settings.shard > 1:
        raise UserError(
            f"federate.shard={settings.shard}: {method.name} needs {needs[0]}, which clients that are cut over ranks "
            "do not give; set federate.shard=1"
        )
    if needs and not isinstance(model, Classifier):
        raise UserError(
            f"federate.method={method.name}: needs {needs[0]}; expected a model with `features` and `classifier` "
            f"(fedscale.models.Classifier), found {type(model).__name__}"
        )
    for name in method.sides:
        assert name in data.side, f"{method.name} asks for {name}, which the stage has not added to the data"
        classes = data.side[name].shape[-1]
        if classes != method.problem.num_classes:
            raise UserError(
                f"federate.method={method.name}: the teacher knows {classes} classes, the model has "
                f"{method.problem.num_classes}; use a teacher of the same classes"
            )
    method.check(model, teacher)


@torch.no_grad()
def check_last_batches(
    model: nn.Module, sizes: Sequence[int], batch_size: int, image_shape: tuple[int, int, int]
) -> None:
    """Raises UserError where a client's last batch is one image and the model cannot be trained on one.

    Batch norm takes no statistics of a single value a channel, as deep models have of one small image; without this
    it would be found out rounds later, when such a client is drawn. `sizes` are the clients' numbers of samples.
    """
    lonely = next((client for client, size in enumerate(sizes) if size and (size - 1) % batch_size == 0), None)
    if lonely is None:
        return
    example, trial = next(model.parameters()), copy.deepcopy(model).train()
    try:
        with torch.random.fork_rng([example.device] if example.device.type == "cuda" else []):
            trial(torch.zeros(1, *image_shape, dtype=example.dtype, device=example.device))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"federate.batch_size={batch_size}: the last batch of client {lonely} ({sizes[lonely]} images) is one, "
            "and of one image batch norm cannot take statistics; choose another batch size, or a model with group norm"
        ) from None
