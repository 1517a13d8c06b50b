"""What an image, or a token, costs a model: counted on torch's meta device, where tensors have no memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from fedscale.config.schema import Config
from fedscale.config.training import ModelConfig
from fedscale.planning.work import Work

if TYPE_CHECKING:
    from torch import nn

FLOAT = 4  # bytes
FORWARD_TRAFFIC, BACKWARD_TRAFFIC = 2, 4  # times that a layer's output goes to or from memory: [D], fitted away
UPDATE_TRAFFIC = 4  # times that an optimiser's step touches each parameter
PAIR = 2  # images that are counted together: batch norm takes no statistics of one


@dataclass(frozen=True)
class Passes:
    """One image through a model: operations by `conv` and `matmul`, layers called, numbers that layers put out.

    `saved` are the bytes that a forward pass keeps for the backward one.
    """

    forward: Mapping[str, float]
    backward: Mapping[str, float]
    outputs: float
    saved: float
    calls: int

    @property
    def flops(self) -> float:
        return sum(self.forward.values()) + sum(self.backward.values())

    def once(self, images: float, precision: str, itemsize: int = FLOAT) -> Work:
        """The forward pass of so many images, calls aside."""
        found = {f"{op}.{precision}": count * images for op, count in self.forward.items() if count}
        return Work({**found, "traffic": FORWARD_TRAFFIC * itemsize * self.outputs * images})

    def trained(self, images: float, precision: str, itemsize: int = FLOAT) -> Work:
        """Forward and backward pass of so many images, calls and the update aside."""
        found = {f"{op}.{precision}": count * images for op, count in self.backward.items() if count}
        back = Work({**found, "traffic": BACKWARD_TRAFFIC * itemsize * self.outputs * images})
        return self.once(images, precision, itemsize) + back


@dataclass(frozen=True)
class Student:
    """The compact model f."""

    parameters: int
    statistics: int  # numbers of batch norm's running means
    norms: int  # batch norms: each sums over the ranks when a step is shared
    feature_dim: int
    passes: Passes
    model: nn.Module  # on the meta device

    @property
    def bytes(self) -> int:
        return FLOAT * (self.parameters + self.statistics)

    def update(self, steps: float) -> Work:
        """So many optimiser steps, and the layer calls of the passes before them."""
        return Work(
            {
                "traffic": UPDATE_TRAFFIC * FLOAT * self.parameters * steps,
                "call": 2.0 * self.passes.calls * steps,
            }
        )


def student_of(config: Config, num_classes: int) -> Student:
    """f as the config builds it. Raises UserError for a model that is not there."""
    return _student(config.model, num_classes, config.data.image_size)


@cache
def _student(settings: ModelConfig, num_classes: int, image_size: int) -> Student:
    import torch

    from fedscale.federated.flat import FlatLayout
    from fedscale.models import build_model

    with torch.device("meta"):
        model = build_model(settings, num_classes, image_size)
    layout = FlatLayout.of(model)
    norms = sum(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules())
    statistics = layout.size - layout.num_parameters
    return Student(
        layout.num_parameters,
        statistics,
        norms,
        getattr(model, "feature_dim", 0),
        passes_of(model, (3, image_size, image_size)),
        model,
    )


def passes_of(model: nn.Module, shape: tuple[int, ...], trained: bool = True) -> Passes:
    """Forward and, if it is `trained`, backward pass of one image [C, H, W] of a model on the meta device."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    outputs, calls, saved = 0, 0, 0
    known = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}

    def called(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal outputs, calls
        outputs += output.numel() if isinstance(output, torch.Tensor) else 0
        calls += 1

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        if id(tensor) not in known:
            known.add(id(tensor))
            alive.append(tensor)  # or its number would be given to another
            saved += tensor.numel() * tensor.element_size()
        return tensor

    alive: list[Any] = []
    leaves = [module for module in model.modules() if not any(True for _ in module.children())]
    hooks = [module.register_forward_hook(called) for module in leaves]
    images = torch.zeros(PAIR, *shape, device="meta")
    try:
        with (
            torch.set_grad_enabled(trained),
            FlopCounterMode(display=False) as counter,
            torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor),
        ):
            out = model.train(trained)(images)
            forward = _by_operation(counter)
            if trained:
                out.sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
    both = _by_operation(counter)
    backward = {op: (both[op] - forward[op]) / PAIR for op in both}
    return Passes({op: n / PAIR for op, n in forward.items()}, backward, outputs / PAIR, saved / PAIR, calls)


def _by_operation(counter: Any) -> dict[str, float]:
    found = {"conv": 0.0, "matmul": 0.0}
    for operation, count in counter.get_flop_counts().get("Global", {}).items():
        found["conv" if "conv" in str(operation) else "matmul"] += count
    return found


@dataclass(frozen=True)
class Decoder:
    """A causal language model: its linear layers' operations a token, and what attention adds with the context."""

    parameters: int
    linear: float  # multiply-adds of all linear layers a token
    layers: int
    width: int
    heads: int
    kv_width: int  # of keys, and of values
    vocabulary: int
    calls: int

    def flops(self, tokens: float, before: float = 0.0) -> float:
        """Of a forward pass of `tokens` tokens of one text behind `before` others, each seeing all in front of it.

        Two products of each pair: queries by keys, weights by values; computed for the whole square, as masks are.
        """
        return 2 * self.linear * tokens + 4 * self.layers * self.width * tokens * (before + tokens)

    def kv_bytes(self, itemsize: int) -> float:
        """Keys and values of a token, all layers."""
        return 2.0 * self.layers * self.kv_width * itemsize

    def saved(self, tokens: float, itemsize: int) -> float:
        """Bytes that a forward pass of one text keeps for the backward one.

        34·s·h + 5·a·s² bytes a layer at two bytes a number: Korthikanti et al., arXiv 2205.05198, equation 2; and the
        logits, thrice in fp32 (as they are, as fp32, and their softmax).
        """
        a_layer = (34 * tokens * self.width + 5 * self.heads * tokens**2) * itemsize / 2
        return self.layers * a_layer + 3 * FLOAT * tokens * self.vocabulary


def decoder_of(model: nn.Module, config: Any) -> Decoder:
    """The shape of a transformers causal model, on the meta device; `config` is its text config."""
    from torch import nn

    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    leaves = sum(not any(True for _ in module.children()) for module in model.modules())
    return Decoder(
        parameters=sum(p.numel() for p in model.parameters()),
        linear=float(sum(math.prod(module.weight.shape) for module in linears)),
        layers=config.num_hidden_layers,
        width=heads * head,
        heads=heads,
        kv_width=kv_heads * head,
        vocabulary=config.vocab_size,
        calls=leaves,
    )
