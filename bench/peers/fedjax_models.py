"""The workloads' models as pure JAX functions on floats [B, H, W, C], with weights taken from the torch state dict.

Weights keep their torch names and are laid out as XLA prefers: convolutions [H, W, in, out], linear layers [in, out].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

Params = dict[str, Any]
Apply = Callable[..., jax.Array]  # (params, images, key or None) -> logits; dropout only with a key


def converted(weights: Mapping[str, NDArray], flattened: tuple[str, tuple[int, int, int]] | None) -> Params:
    """JAX's arrays of a torch state dict. `flattened`: the linear layer that takes a flattened [C, H, W], and that."""
    params: Params = {}
    for name, value in weights.items():
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
        elif flattened and name == flattened[0]:
            value = value.reshape(len(value), *flattened[1]).transpose(2, 3, 1, 0).reshape(-1, len(value))
        elif value.ndim == 2:
            value = value.T
        params[name] = jnp.asarray(np.ascontiguousarray(value))
    return params


def convolution(images: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0) -> jax.Array:
    around = ((padding, padding), (padding, padding))
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(images, kernel, (stride, stride), around, dimension_numbers=layout)


def layer(params: Params, name: str, x: jax.Array, padding: int = 0) -> jax.Array:
    """A convolution or a linear layer with its bias, by the shape of its weight."""
    weight = params[f"{name}.weight"]
    out = convolution(x, weight, padding=padding) if weight.ndim == 4 else x @ weight
    return out + params[f"{name}.bias"]


def max_pool(x: jax.Array) -> jax.Array:
    window = (1, 2, 2, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    return x if key is None else jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0.0)


def flat(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1)


def logistic_regression(params: Params, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
    return layer(params, "1", flat(images))


def mlp(params: Params, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
    return layer(params, "3", jax.nn.relu(layer(params, "1", flat(images))))


def lenet(params: Params, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
    x = max_pool(jax.nn.relu(layer(params, "0", images, padding=2)))
    x = max_pool(jax.nn.relu(layer(params, "3", x)))
    x = jax.nn.relu(layer(params, "7", flat(x)))
    return layer(params, "11", jax.nn.relu(layer(params, "9", x)))


def simple_cnn(params: Params, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
    first, second = (None, None) if key is None else jax.random.split(key)
    x = jax.nn.relu(layer(params, "0", images))
    x = dropout(max_pool(jax.nn.relu(layer(params, "2", x))), 0.25, first)
    x = dropout(jax.nn.relu(layer(params, "7", flat(x))), 0.5, second)
    return layer(params, "10", x)


# Of each model: its function, and the linear layer that follows flattening, with the flattened [C, H, W].
MODELS: dict[str, tuple[Apply, tuple[str, tuple[int, int, int]] | None]] = {
    "lr": (logistic_regression, None),
    "mlp": (mlp, None),
    "lenet": (lenet, ("7.weight", (16, 5, 5))),
    "simple_cnn": (simple_cnn, ("7.weight", (64, 14, 14))),
}

MOMENTUM, EPSILON = 0.1, 1e-5  # BatchNorm's, as torch's defaults


def resnet8(params: Params, images: jax.Array) -> tuple[jax.Array, Params]:
    """Logits of the project's ResNet-8 in training mode, and its running statistics after this batch."""
    running: Params = {}

    def norm(name: str, x: jax.Array) -> jax.Array:
        count = x.shape[0] * x.shape[1] * x.shape[2]
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        for kind, value in (("mean", mean), ("var", variance * count / (count - 1))):
            old = params[f"{name}.running_{kind}"]
            running[f"{name}.running_{kind}"] = lax.stop_gradient(old + MOMENTUM * (value - old))
        scale = params[f"{name}.weight"] * lax.rsqrt(variance + EPSILON)
        return (x - mean) * scale + params[f"{name}.bias"]

    def block(name: str, x: jax.Array, stride: int) -> jax.Array:
        out = convolution(x, params[f"{name}.conv1.weight"], stride, padding=1)
        out = convolution(jax.nn.relu(norm(f"{name}.bn1", out)), params[f"{name}.conv2.weight"], padding=1)
        if stride != 1:
            x = norm(f"{name}.shortcut.1", convolution(x, params[f"{name}.shortcut.0.weight"], stride))
        return jax.nn.relu(norm(f"{name}.bn2", out) + x)

    x = jax.nn.relu(norm("bn1", convolution(images, params["conv1.weight"], padding=1)))
    for number, stride in ((1, 1), (2, 2), (3, 2)):
        x = block(f"layer{number}", x, stride)
    return layer(params, "classifier", x.mean((1, 2))), running
