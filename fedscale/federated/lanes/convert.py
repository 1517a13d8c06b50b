"""A model as the module tree of L clients, and the two forms for other models.

`LaneForm` swaps each layer for its L-client twin and keeps the forwards of everything above. That is right only for
models that treat channels alike, so `check` compares it with the model before it is used.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.dropout import _DropoutNd

from fedscale.federated.draws import draw
from fedscale.federated.lanes import layers
from fedscale.federated.lanes.layers import Lanes, Unsupported
from fedscale.federated.lanes.state import LaneView
from fedscale.models.pointwise import PointwiseConv2d
from fedscale.models.resnet import Classifier

TWINS: dict[type[nn.Module], type[layers.LaneLayer]] = {
    nn.Conv1d: layers.LaneConv,
    nn.Conv2d: layers.LaneConv,
    PointwiseConv2d: layers.LaneConv,
    nn.Linear: layers.LaneLinear,
    nn.BatchNorm1d: layers.LaneBatchNorm,
    nn.BatchNorm2d: layers.LaneBatchNorm,
    nn.GroupNorm: layers.LaneGroupNorm,
    nn.LayerNorm: layers.LaneLayerNorm,
    nn.Flatten: layers.LaneFlatten,
    nn.Dropout: layers.LaneDropout,
}


class Form(Protocol):
    """How L clients' logits are computed. `lanes` tells the layers what a step needs beside the tensors."""

    name: str
    lanes: Lanes
    channels_last: bool  # whether images should lie so
    single_linears: set[str]  # weights of linear layers that are used once in a forward pass

    def logits(self, view: LaneView, images: Tensor) -> Tensor:
        """Logits [L, B, C] of float images [B, L, C, H, W], in training mode; statistics in `view` are updated."""

    def outputs(self, view: LaneView, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [L, B, D], the classifier's inputs, and logits, in training mode; of a Classifier alone."""

    def judged(self, tensors: Mapping[str, Tensor], images: Tensor) -> tuple[Tensor | None, Tensor]:
        """Features (None of a model that is no Classifier) and logits of tensors [L, *shape], in evaluation mode."""


class LaneForm:
    """The module tree of L clients."""

    name = "lanes"

    def __init__(self, model: nn.Module) -> None:
        self.lanes = Lanes()
        _refuse_tied(model)
        self._model = _hollow(model)
        self.tree = _twin(copy.deepcopy(self._model), "", self.lanes).train()
        self.channels_last = any(isinstance(module, layers.LaneConv) for module in self.tree.modules())
        self.single_linears = set[str]()  # known once the form was checked, which counts the uses

    def logits(self, view: LaneView, images: Tensor) -> Tensor:
        self.lanes.count, self.lanes.tensors = len(view), view.tensors
        return _by_lane(self.tree(images.flatten(1, 2)), len(view))

    def outputs(self, view: LaneView, images: Tensor) -> tuple[Tensor, Tensor]:
        self.lanes.count, self.lanes.tensors = len(view), view.tensors
        assert isinstance(self.tree, Classifier), "a method that asks for features was given another model"
        features = self.tree.features(images.flatten(1, 2))
        return _by_lane(features, len(view)), _by_lane(self.tree.classifier(features), len(view))

    def judged(self, tensors: Mapping[str, Tensor], images: Tensor) -> tuple[Tensor | None, Tensor]:
        tree, lanes = self._judge
        lanes.count, lanes.tensors = images.shape[1], dict(tensors)
        if not isinstance(tree, Classifier):
            return None, _by_lane(tree(images.flatten(1, 2)), lanes.count)
        features = tree.features(images.flatten(1, 2))
        return _by_lane(features, lanes.count), _by_lane(tree.classifier(features), lanes.count)

    @cached_property
    def _judge(self) -> tuple[nn.Module, Lanes]:
        """The tree in evaluation mode; it needs no memory of its own."""
        lanes = Lanes()
        return _twin(copy.deepcopy(self._model), "", lanes).eval(), lanes


class _OwnForm:
    """What the forms share that call the model itself: copies of it without memory, for training and for judging."""

    def __init__(self, model: nn.Module) -> None:
        self.lanes, self.channels_last, self.single_linears = Lanes(), False, set[str]()
        self._kernels = _kernels(model)
        self._model = _hollow(model).train()
        self._counters = counters_of(model)  # integer buffers as they are before a client's first step

    @cached_property
    def _speaker(self) -> nn.Module:
        return _speaking(self._model).train()

    @cached_property
    def _judge(self) -> nn.Module:
        return (_speaking(self._model) if isinstance(self._model, Classifier) else _hollow(self._model)).eval()


class VmapForm(_OwnForm):
    """torch.func.vmap over the model itself, for trees that have no lane form."""

    name = "vmap"

    def __init__(self, model: nn.Module) -> None:
        for path, module in model.named_modules():
            if isinstance(module, _DropoutNd) and module.p > 0:
                raise Unsupported(f"{path}: {type(module).__name__} draws masks that would depend on the lanes")
        super().__init__(model)

    def logits(self, view: LaneView, images: Tensor) -> Tensor:
        logits: Tensor = self._mapped(self._model, view.tensors, images)
        return logits

    def outputs(self, view: LaneView, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self._mapped(self._speaker, view.tensors, images)
        return features, logits

    def judged(self, tensors: Mapping[str, Tensor], images: Tensor) -> tuple[Tensor | None, Tensor]:
        out = self._mapped(self._judge, tensors, images)
        return out if isinstance(self._model, Classifier) else (None, out)

    def _mapped(self, model: nn.Module, tensors: Mapping[str, Tensor], images: Tensor) -> Any:
        lanes = images.shape[1]
        counters = {name: c.to(images.device).expand(lanes, *c.shape).clone() for name, c in self._counters.items()}
        dense = {name: _dense(tensors[name]) for name in self._kernels}

        def one(tensors: dict[str, Tensor], batch: Tensor) -> Any:
            return functional_call(model, tensors, (batch,))

        return vmap(one, in_dims=(0, 1), randomness="different")(dict(tensors) | dense | counters, images)


class PlainForm(_OwnForm):
    """The model itself, for one client at a time: whatever it does."""

    name = "plain"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._counting = self._counters  # as they are now

    def logits(self, view: LaneView, images: Tensor) -> Tensor:
        logits: Tensor = self._called(self._model, view.tensors, images)
        return logits[None]

    def outputs(self, view: LaneView, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self._called(self._speaker, view.tensors, images)
        return features[None], logits[None]

    def _called(self, model: nn.Module, stacked: Mapping[str, Tensor], images: Tensor) -> Any:
        """What the model, in training mode, makes of one lane's images; its counters go on counting."""
        if isinstance(self.lanes.step, int) and self.lanes.step == 0:  # another client begins
            self._counting = {name: counter.clone() for name, counter in self._counters.items()}
        if self.lanes.dropout_keys is not None:  # what the model draws by itself is the client's and step's own too
            torch.manual_seed(int(draw(self.lanes.dropout_keys, torch.as_tensor(self.lanes.step))) & (2**63 - 1))
        return functional_call(model, self._single(stacked) | self._counting, (images[:, 0],))

    def judged(self, tensors: Mapping[str, Tensor], images: Tensor) -> tuple[Tensor | None, Tensor]:
        counters = {name: counter.clone() for name, counter in self._counters.items()}
        out = functional_call(self._judge, self._single(tensors) | counters, (images[:, 0],))
        return (out[0][None], out[1][None]) if isinstance(self._model, Classifier) else (None, out[None])

    def _single(self, stacked: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tensors = {name: tensor[0] for name, tensor in stacked.items()}
        assert all(len(tensor) == 1 for tensor in stacked.values()), "the plain form holds one client"
        return tensors | {name: _dense(tensors[name]) for name in self._kernels}


def _speaking(model: nn.Module) -> nn.Module:
    """A hollow copy of a classifier whose forward gives features and logits."""
    hollow = _hollow(model)
    assert isinstance(hollow, Classifier), "a method that asks for features was given another model"

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        features = hollow.features(images)
        return features, hollow.classifier(features)

    hollow.forward = forward  # type: ignore[method-assign,assignment]
    return hollow


def _by_lane(out: Tensor, lanes: int) -> Tensor:
    """[B, L · n] as [L, B, n]."""
    if out.dim() != 2 or out.shape[1] % lanes:
        raise Unsupported(f"the model: an output of shape {list(out.shape)}, expected [B, lanes · classes]")
    return out.view(len(out), lanes, -1).transpose(0, 1)


def _kernels(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.dim() == 4]


def _dense(kernel: Tensor) -> Tensor:
    """A copy that is not channels-last, as kernels lie in the buffer: forwards that say `view` need activations so.

    Nor are torch's grouped convolutions of single images right otherwise (see LaneConv).
    """
    return kernel.clone(memory_format=torch.contiguous_format)


def counters_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the integer buffers, which lanes do not hold."""
    return {name: b.detach().clone() for name, b in model.named_buffers() if not b.is_floating_point()}


def _hollow(model: nn.Module) -> nn.Module:
    """The model without memory, its tensors on `meta`; tied ones stay tied, which `model.to("meta")` undoes."""
    hollow: dict[int, Tensor] = {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    for p in model.parameters():
        hollow[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
    return copy.deepcopy(model, hollow)


def _refuse_tied(model: nn.Module) -> None:
    known = {name for name, _ in model.named_parameters()}
    for name, _ in model.named_parameters(remove_duplicate=False):
        if name not in known:
            raise Unsupported(f"{name}: a parameter that another layer has too")


def _twin(module: nn.Module, path: str, lanes: Lanes) -> nn.Module:
    if type(module) in TWINS:
        return TWINS[type(module)](module, path, lanes)
    own = [name for name, t in [*module._parameters.items(), *module._buffers.items()] if t is not None]
    if own:
        raise Unsupported(f"{path or 'the model'}: {type(module).__name__} has tensors of its own ({own[0]})")
    for name, child in list(module._modules.items()):
        if child is not None:
            module._modules[name] = _twin(child, f"{path}.{name}" if path else name, lanes)
    return module
