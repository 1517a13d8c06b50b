"""Which form a model trains in: held against the model itself, in float64 on random numbers, before it is used."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from fedscale.federated.flat import FlatLayout
from fedscale.federated.lanes import layers
from fedscale.federated.lanes.convert import Form, LaneForm, PlainForm, VmapForm, counters_of
from fedscale.federated.lanes.layers import Unsupported
from fedscale.federated.lanes.state import LaneState

TOLERANCE = 1e-8  # relative


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

    Raises Unsupported where it cannot run, gives something else, or draws random numbers other than dropout's.
    """
    with torch.random.fork_rng([]):
        return _checked(form, model, image_shape)


def _checked(form: Form, model: nn.Module, image_shape: tuple[int, int, int]) -> Form:
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
        logits = functional_call(reference, tensors | counters_of(reference), (images[:, lane],))
        if logits.dim() != 2:
            raise Unsupported(f"the model: logits of shape {list(logits.shape)}, expected [B, classes]")
        weights = torch.randn(logits.shape, generator=generator, dtype=torch.float64) if weights is None else weights
        trained = [tensors[entry.name] for entry in layout.parameters]
        grads = torch.autograd.grad((logits * weights).sum(), trained, allow_unused=True, materialize_grads=True)
        wanted.append((logits, grads, [tensors[entry.name] for entry in layout.statistics]))
    assert weights is not None
    uses, hooks = _counted(form)
    try:
        before = torch.get_rng_state()
        found = form.logits(view, _laid_out(images) if form.channels_last else images)
        if not torch.equal(torch.get_rng_state(), before):  # which may not show in what is compared below
            raise Unsupported("the model: draws random numbers by itself, which would depend on the lanes")
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


def _compare(what: str, found: Tensor, wanted: Tensor) -> None:
    scale = wanted.abs().max().clamp(min=1.0)
    if found.shape != wanted.shape or not bool(((found - wanted).abs() <= TOLERANCE * scale).all()):
        raise Unsupported(f"the model: {what} differs when clients are computed side by side")
