"""What the source of a config says of its keys: types, defaults, the comments behind them, what the checks expect."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

LATER = "…"


@dataclasses.dataclass(frozen=True)
class Key:
    """A setting by its dotted name; `expected` is what `__post_init__` requires of it."""

    name: str
    kind: str
    default: str
    comment: str
    expected: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Section:
    """A dataclass's docstring and keys, and where in the config they are."""

    path: str
    text: str
    keys: tuple[Key, ...]


def sections(kind: type, path: str = "") -> list[Section]:
    """A config dataclass and, after it, those of its fields, depth first.

    Raises ValueError for a check of a key that is nowhere in it.
    """
    found = list(_classes(kind, path))
    names = {dotted(where, field.name) for where, one in found for field in dataclasses.fields(one)}
    expected: dict[str, list[str]] = {}
    for where, one in found:
        for key, text in _checks_of(one):
            full = dotted(where, key.split(".")[-1])
            if full not in names:
                full = next((name for name in (key, dotted(where, key.split(".")[0])) if name in names), "")
            if not full:
                raise ValueError(f"{one.__name__} checks {key}, which is no key of {kind.__name__}")
            expected.setdefault(full, []).append(text)
    return [_section(where, one, expected) for where, one in found]


def _classes(kind: type, path: str) -> Iterator[tuple[str, type]]:
    yield path, kind
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from _classes(typing.cast(type, hint), dotted(path, name))


def _section(path: str, kind: type, expected: dict[str, list[str]]) -> Section:
    hints, comments = typing.get_type_hints(kind), _comments(kind)
    keys = [
        Key(name, type_name(hints[field.name]), _default(field), comments[field.name], tuple(expected.get(name, ())))
        for field in dataclasses.fields(kind)
        if not dataclasses.is_dataclass(hints[field.name])
        for name in (dotted(path, field.name),)
    ]
    return Section(path, inspect.getdoc(kind) or "", tuple(keys))


def dotted(path: str, name: str) -> str:
    """`path.name`, or the name alone."""
    return f"{path}.{name}" if path else name


def type_name(hint: Any) -> str:
    """A field's type, as one who writes a config thinks of it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("null" if one is type(None) else type_name(one) for one in arguments)
    if origin is tuple:
        one = type_name(arguments[0])
        return f"list of {one}" if arguments[-1] is Ellipsis else f"{len(arguments)} × {one}"
    if origin is dict:
        return "keys and values"
    return "any" if hint is Any else str(hint.__name__)


def _default(field: dataclasses.Field[Any]) -> str:
    made = field.default_factory
    return json.dumps(field.default if made is dataclasses.MISSING else made(), ensure_ascii=False)


def _sources(kind: type) -> Iterator[tuple[list[ast.stmt], list[str], dict[str, Any]]]:
    """Statements, lines and module of a dataclass and of those that it extends, the first one's first."""
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            source = textwrap.dedent(inspect.getsource(base))
            (node,) = ast.parse(source).body
            assert isinstance(node, ast.ClassDef)
            yield node.body, source.splitlines(), vars(sys.modules[base.__module__])


def _comments(kind: type) -> dict[str, str]:
    """By field, what stands behind it; a name such as STUDENTS is replaced by what it lists."""
    found = {}
    for body, lines, module in _sources(kind):
        for part in body:
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                own = lines[part.lineno - 1 : part.end_lineno]
                comment = " ".join(line.partition("  # ")[2] for line in own if "  # " in line)
                found[part.target.id] = _with_lists(comment, module)
    return found


def _with_lists(comment: str, module: dict[str, Any]) -> str:
    def listed(name: re.Match[str]) -> str:
        value = module.get(name[0])
        return ", ".join(f"`{one}`" for one in value) if isinstance(value, tuple) else name[0]

    return re.sub(r"\b[A-Z]{4,}\b", listed, comment)


def _checks_of(kind: type) -> Iterator[tuple[str, str]]:
    """(key, what is expected of it) of every `require` in a dataclass's `__post_init__`."""
    for body, _, module in _sources(kind):
        for part in body:
            if isinstance(part, ast.FunctionDef) and part.name == "__post_init__":
                yield from _checks_in(part.body, module)


def _checks_in(body: list[ast.stmt], names: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for part in body:
        if isinstance(part, ast.For):
            values, target = _value(part.iter, names), part.target
            for value in values if isinstance(values, tuple) else (None,):
                known = {target.id: value} if isinstance(target, ast.Name) else {}
                yield from _checks_in(part.body, {**names, **known})
        elif isinstance(part, ast.If):
            yield from _checks_in(part.body, names)
        elif isinstance(part, ast.Expr) and isinstance(part.value, ast.Call):
            call = part.value
            if isinstance(call.func, ast.Name) and call.func.id == "require":
                holds, key, _, expected = call.args
                yield _text(key, names).strip(f".{LATER}"), _refused(holds, names) + _text(expected, names)


def _refused(holds: ast.expr, names: dict[str, Any]) -> str:
    """Of a check that refuses a single value, which."""
    if isinstance(holds, ast.Compare) and isinstance(holds.ops[0], ast.NotEq):
        return f"not {_text(holds.comparators[0], names)} but "
    return ""


def _text(node: ast.expr, names: dict[str, Any]) -> str:
    """A text; LATER stands for what of it is known of a config alone."""
    if not isinstance(node, ast.JoinedStr):
        return str(_value(node, names))
    parts = [part.value if isinstance(part, ast.FormattedValue) else part for part in node.values]
    return "".join(str(_value(part, names)) for part in parts)


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    """An expression's value from the module's names, LATER where it needs a config."""
    try:
        return eval(compile(ast.Expression(node), "<config>", "eval"), dict(names))
    except (NameError, AttributeError):
        return LATER
