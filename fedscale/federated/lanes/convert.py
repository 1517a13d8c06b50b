"""A model as the module tree of L clients, checked against the model itself; and the two forms for other models.

`lane_form` swaps each layer for its L-client twin and keeps the forwards of everything above. That is right only for
models that treat channels alike, so the result is compared with the model on random numbers before it is used.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.hooks import RemovableHandle

from fedscale.federated.draws import draw
from fedscale.federated.flat import FlatLayout
from fedscale.federated.lanes import layers
from fedscale.federated.lanes.layers import Lanes, Unsupported
from fedscale.federated.lanes.state import LaneState, LaneView
from fedscale.models.pointwise import PointwiseConv2d

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
TOLERANCE = 1e-8  # of the check, relative, in float64


class Form(Protocol):
    """How L clients' logits are computed. `lanes` tells the layers what a step needs beside the tensors."""

    name: str
    lanes: Lanes
    channels_last: bool  # whether images should lie so
    single_linears: set[str]  # weights of linear layers that are used once in a forward pass

    def logits(self, view: LaneView, images: Tensor) -> Tensor:
        """Logits [L, B, C] of float images [B, L, C, H, W], in training mode; statistics in `view` are updated."""


class LaneForm:
    """The module tree of L clients."""

    name = "lanes"

    def __init__(self, model: nn.Module) -> None:
        self.lanes = Lanes()
        _refuse_tied(model)
        self.tree = _twin(copy.deepcopy(model), "", self.lanes).train()
        self.channels_last = any(isinstance(module, layers.LaneConv) for module in self.tree.modules())
        self.single_linears = set[str]()  # known once the form was checked, which counts the uses

    def logits(self, view: LaneView, images: Tensor) -> Tensor:
        lanes = self.lanes
        lanes.count, lanes.tensors = len(view), view.tensors
        out = self.tree(images.flatten(1, 2))
        if out.dim() != 2 or out.shape[1] % len(view):
            raise Unsupported(f"the model: an output of shape {list(out.shape)}, expected [B, lanes · classes]")
        return out.view(len(out), len(view), -1).transpose(0, 1)


class VmapForm:
    """torch.func.vmap over the model itself, for trees that have no lane form."""

    name = "vmap"

    def __init__(self, model: nn.Module) -> None:
        self.lanes, self.channels_last, self.single_linears = Lanes(), False, set[str]()
        for path, module in model.named_modules():
            if isinstance(module, _DropoutNd) and module.p > 0:
                raise Unsupported(f"{path}: {type(module).__name__} draws masks that would depend on the lanes")
        self._kernels = _kernels(model)
        self._model = _hollow(model).train()
        self._counters = _counters(model)

    def logits(self, view: LaneView, images: Tensor) -> Tensor:
        counters = {name: c.expand(len(view), *c.shape).clone() for name, c in self._counters.items()}
        tensors = view.tensors | {name: _dense(view.tensors[name]) for name in self._kernels} | counters

        def one(tensors: dict[str, Tensor], batch: Tensor) -> Tensor:
            return functional_call(self._model, tensors, (batch,))

        return vmap(one, in_dims=(0, 1), randomness="different")(tensors, images)


class PlainForm:
    """The model itself, for one client at a time: whatever it does."""

    name = "plain"

    def __init__(self, model: nn.Module) -> None:
        self.lanes, self.channels_last, self.single_linears = Lanes(), False, set[str]()
        self._kernels = _kernels(model)
        self._model = _hollow(model).train()
        self._counters = _counters(model)  # integer buffers as they are before a client's first step
        self._counting = self._counters  # and as they are now

    def logits(self, view: LaneView, images: Tensor) -> Tensor:
        assert len(view) == 1, "the plain form holds one client"
        tensors = {name: tensor[0] for name, tensor in view.tensors.items()}
        tensors |= {name: _dense(tensors[name]) for name in self._kernels}
        if isinstance(self.lanes.step, int) and self.lanes.step == 0:  # another client begins
            self._counting = {name: counter.clone() for name, counter in self._counters.items()}
        if self.lanes.dropout_keys is not None:  # what the model draws by itself is the client's and step's own too
            torch.manual_seed(int(draw(self.lanes.dropout_keys, torch.as_tensor(self.lanes.step))) & (2**63 - 1))
        return functional_call(self._model, tensors | self._counting, (images[:, 0],))[None]


def single_form(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[Form, str]:
    """The form that trains one client, and why it is not the lane form ('' when it is); image_shape is [C, H, W]."""
    try:
        return checked(LaneForm(model), model, image_shape), ""
    except Unsupported as reason:
        return PlainForm(model), str(reason)


def batched_form(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[Form, str]:
    """The form that trains several clients, and why it is not the lane form. Raises Unsupported where there is none."""
    try:
        return checked(LaneForm(model), model, image_shape), ""
    except Unsupported as first:
        try:
            return checked(VmapForm(model), model, image_shape), str(first)
        except Unsupported as second:
            raise Unsupported(f"{first}; vmap: {second}") from None


def checked(form: Form, model: nn.Module, image_shape: tuple[int, int, int]) -> Form:
    """The form, if two clients of random weights and images get the model's logits, gradients and statistics.

    Raises Unsupported where it cannot run or gives something else.
    """
    reference = copy.deepcopy(model).cpu().double().train()
    for module in reference.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    layout = FlatLayout.of(reference)
    like = torch.zeros(1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    state = LaneState(layout, 2, like, ())
    blocks = state.model.blocks()
    for name, tensor in {**dict(reference.named_parameters()), **dict(reference.named_buffers())}.items():
        if name in blocks:
            noise = torch.rand(2, *tensor.shape, generator=generator, dtype=torch.float64)
            blocks[name].copy_(tensor.detach() + 0.1 * noise)
    images = torch.randn(3, 2, *image_shape, generator=generator, dtype=torch.float64)
    weights: Tensor | None = None
    wanted, view = [], state.view()
    starts = {name: block.clone() for name, block in blocks.items()}
    for lane in range(2):
        tensors = {name: start[lane].clone(memory_format=torch.contiguous_format) for name, start in starts.items()}
        for entry in layout.parameters:
            tensors[entry.name].requires_grad_()
        logits = functional_call(reference, tensors | _counters(reference), (images[:, lane],))
        if logits.dim() != 2:
            raise Unsupported(f"the model: logits of shape {list(logits.shape)}, expected [B, classes]")
        weights = torch.randn(logits.shape, generator=generator, dtype=torch.float64) if weights is None else weights
        trained = [tensors[entry.name] for entry in layout.parameters]
        grads = torch.autograd.grad((logits * weights).sum(), trained, allow_unused=True, materialize_grads=True)
        wanted.append((logits, grads, [tensors[entry.name] for entry in layout.statistics]))
    assert weights is not None
    uses, hooks = _counted(form)
    try:
        found = form.logits(view, _laid_out(images) if form.channels_last else images)
        found_grads = torch.autograd.grad(
            (found * weights).sum(), list(view.parameters), allow_unused=True, materialize_grads=True
        )
    except Unsupported:
        raise
    except Exception as error:
        raise Unsupported(" ".join(str(error).split())[:200] or type(error).__name__) from None
    finally:
        for hook in hooks:
            hook.remove()
    form.single_linears = {name for name, count in uses.items() if count == 1}
    for lane, (logits, grads, statistics) in enumerate(wanted):
        _compare("the logits", found[lane], logits)
        for entry, ours, theirs in zip(layout.parameters, found_grads, grads, strict=True):
            _compare(f"the gradient of {entry.name}", ours[lane], theirs)
        for entry, theirs in zip(layout.statistics, statistics, strict=True):
            _compare(entry.name, view.tensors[entry.name][lane], theirs)
    return form


def _laid_out(images: Tensor) -> Tensor:
    """Images [B, L, C, H, W] as they lie when they are trained on: channels-last, the lanes among the channels."""
    return images.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)


def _counted(form: Form) -> tuple[Counter[str], list[RemovableHandle]]:
    """Counts how often each linear layer of a lane form is used from now on, until the hooks are removed."""
    uses, hooks = Counter[str](), list[RemovableHandle]()
    for module in form.tree.modules() if isinstance(form, LaneForm) else ():
        if isinstance(module, layers.LaneLinear):
            hooks.append(module.register_forward_pre_hook(lambda layer, _: uses.update([layer.weight])))
    return uses, hooks


def _kernels(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.dim() == 4]


def _dense(kernel: Tensor) -> Tensor:
    """A copy that is not channels-last, as kernels lie in the buffer: forwards that say `view` need activations so.

    Nor are torch's grouped convolutions of single images right otherwise (see LaneConv).
    """
    return kernel.clone(memory_format=torch.contiguous_format)


def _compare(what: str, found: Tensor, wanted: Tensor) -> None:
    scale = wanted.abs().max().clamp(min=1.0)
    if found.shape != wanted.shape or not bool(((found - wanted).abs() <= TOLERANCE * scale).all()):
        raise Unsupported(f"the model: {what} differs when clients are computed side by side")


def _counters(model: nn.Module) -> dict[str, Tensor]:
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
