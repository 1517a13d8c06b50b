"""Plain trees (of YAML, of `key=value` words) as dataclasses, every key and type checked. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any, TypeVar

from fedscale.errors import UserError

T = TypeVar("T")


def build(cls: type[T], tree: Any, path: str) -> T:
    """`tree` as a dataclass, every key and type checked; `path` is the dotted key that leads here."""
    if not isinstance(tree, dict):
        raise UserError(f"{path}={tree}: expected keys and values")
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in tree.items():
        dotted = f"{path}.{key}" if path else str(key)
        if key not in hints:
            raise UserError(f"{dotted}: unknown key{_nearest(str(key), hints, path)}")
        values[key] = _convert(hints[key], value, dotted)
    return cls(**values)


def _nearest(key: str, known: dict[str, Any], path: str) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {path + '.' if path else ''}{close[0]}?"
    return f"; expected one of {', '.join(known)}"


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, path)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), {} if value is None else value, path)
    if origin is typing.Literal:
        # YAML reads a bare `no` as false; the option that is spelt so is meant.
        text = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
        if text not in arguments:
            close = difflib.get_close_matches(str(text), [str(a) for a in arguments], n=1, cutoff=0.5)
            hinted = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"{path}={value}: expected one of {', '.join(map(str, arguments))}{hinted}")
        return text
    if origin is tuple:
        return _convert_tuple(arguments, value, path)
    if origin is dict:
        if not isinstance(value, dict | None):
            raise UserError(f"{path}={value}: expected keys and values")
        return value or {}
    return _convert_scalar(hint, value, path)


def _convert_tuple(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{path}={value}: expected a list, e.g. {path}=[...]")
    if arguments[-1] is Ellipsis:
        return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if len(value) != len(arguments):
        raise UserError(f"{path}={list(value)}: expected {len(arguments)} values")
    return tuple(
        _convert(hint, item, f"{path}[{i}]") for i, (hint, item) in enumerate(zip(arguments, value, strict=True))
    )


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as a text
        try:
            return float(value)
        except ValueError:
            pass
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{path}={value}: expected {names[hint]}")
    return value
