"""YAML files merged left to right, then `key=value` words, checked against the dataclasses of `schema`."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedscale import house
from fedscale.config.schema import Config, RecipeConfig
from fedscale.errors import UserError

T = TypeVar("T")


def load_config(words: Sequence[str]) -> Config:
    """The experiment that `CONFIG... [key=value...]` describes.

    A `data.recipe` is read first and the other keys of `data` override it. Raises UserError for a missing file,
    invalid YAML, an unknown key (with the nearest right name), a value of the wrong type or out of range.
    """
    files, overrides = _split(words)
    if not files:
        raise UserError("no config file given: name at least one, e.g. configs/demo.yaml")
    tree = _merge([_read(file) for file in files], overrides)
    data = tree.get("data")
    if isinstance(data, dict) and data.get("recipe"):
        recipe = data["recipe"]
        path = house.find(str(recipe), "shard recipe")
        base = OmegaConf.create({"name": path.stem})
        tree["data"] = _plain(OmegaConf.merge(base, _read(str(recipe)), OmegaConf.create(data)))
    tree.setdefault("name", Path(files[0]).stem)
    _put_prompts(tree)
    config = _build(Config, tree, "")
    for name in config.variants:
        overlaid(config, config.variants[name] or {}, f"variants.{name}")
    return config


def _put_prompts(tree: dict[str, Any]) -> None:
    """Lay `caption.prompts` over the questions of `caption.prompt_file`, so that a resolved config holds them all."""
    caption = tree.get("caption")
    if isinstance(caption, dict) and caption.get("prompt_file"):
        base = _read(str(caption["prompt_file"]))
        caption["prompts"] = _plain(OmegaConf.merge(base, OmegaConf.create(caption.get("prompts") or {})))


def load_recipe(words: Sequence[str]) -> RecipeConfig:
    """The shard recipe that `RECIPE... [key=value...]` describes. Raises UserError like `load_config`."""
    files, overrides = _split(words)
    if not files:
        raise UserError("no recipe given: name one, e.g. shards/cifar10_lt.yaml")
    tree = _merge([_read(file) for file in files], overrides)
    tree.setdefault("name", house.find(files[0], "shard recipe").stem)
    return _build(RecipeConfig, tree, "")


def overlaid(config: Config, overlay: dict[str, Any], where: str = "overlay") -> Config:
    """The config with `overlay` merged over it. Raises UserError naming `where` for an unknown key or bad value."""
    if not isinstance(overlay, dict):
        raise UserError(f"{where}={overlay}: expected keys and values to lay over the config")
    try:
        base = to_dict(config)
        if (overlay.get("caption") or {}).get("prompt_file", config.caption.prompt_file) != config.caption.prompt_file:
            del base["caption"]["prompts"]  # another file's questions take their place
        tree = _plain(OmegaConf.merge(OmegaConf.create(base), OmegaConf.create(overlay)))
        _put_prompts(tree)
        return _build(Config, tree, "")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain dicts, lists and scalars."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    return plain(dataclasses.asdict(config))


def to_yaml(config: Any) -> str:
    """A config as YAML that `load_config` or `load_recipe` reads back."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, width=120)


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    files = [word for word in words if "=" not in word]
    return files, [word for word in words if "=" in word]


def _read(file: str) -> DictConfig:
    path = house.find(file, "config file")
    if path.is_dir():
        raise UserError(f"{file}: a folder, expected a YAML file")
    try:
        tree = OmegaConf.create(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid YAML ({' '.join(str(error).split())})") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    if not isinstance(tree, DictConfig):
        raise UserError(f"{file}: expected keys and values at the top, found a list")
    return tree


def _merge(trees: list[DictConfig], overrides: list[str]) -> dict[str, Any]:
    for word in overrides:
        if not word.partition("=")[0].strip():
            raise UserError(f"{word}: expected key=value")
    try:
        return _plain(OmegaConf.merge(*trees, OmegaConf.from_dotlist(overrides)))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"config: cannot be merged ({' '.join(str(error).split())})") from None


def _plain(tree: Any) -> dict[str, Any]:
    return typing.cast(dict[str, Any], OmegaConf.to_container(tree, resolve=True))


def _build(cls: type[T], tree: Any, path: str) -> T:
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
        return _build(typing.cast(type, hint), {} if value is None else value, path)
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
        if not isinstance(value, dict):
            raise UserError(f"{path}={value}: expected keys and values")
        return value
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
