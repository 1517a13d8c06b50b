"""One file a method: what a client minimises and keeps, what it uploads, what the server does with the means.

`base` says what a method may override. To add one: a file beside these, its options in `config.method_options`, and a
line in `config.methods`; or a class of your own, named as `federate.method=package.module:Name`.
"""

from __future__ import annotations

from typing import cast

from fedscale import plugins
from fedscale.config.methods import BUILT_IN, KEY, target_of
from fedscale.config.schema import FederateConfig
from fedscale.errors import UserError
from fedscale.federated.methods.base import Batch, Method, Problem, Server, ServerWork

__all__ = ["Batch", "Method", "Problem", "Server", "ServerWork", "built_in", "make_method", "method_class"]


def method_class(name: str) -> type[Method]:
    """The method of a config's word. Raises UserError where there is none, or where it is no Method."""
    target = target_of(name)
    found = plugins.load(target, KEY)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"{KEY}={name}: {target} is no subclass of fedscale.federated.methods.Method")
    return found


def make_method(config: FederateConfig, problem: Problem) -> Method:
    """The config's method. Raises UserError like `method_class`, and for one that is not made of these two."""
    return cast(Method, plugins.called(method_class(config.method), f"{KEY}={config.method}", config, problem))


def built_in() -> dict[str, type[Method]]:
    """All methods that come with fedscale, by name."""
    return {name: method_class(name) for name in BUILT_IN}
