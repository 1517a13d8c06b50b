"""YAML files merged left to right, then `key=value` words, checked against the dataclasses of `schema`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedscale import house
from fedscale.config.convert import build
from fedscale.config.schema import Config, RecipeConfig
from fedscale.errors import UserError


def load_config(words: Sequence[str]) -> Config:
    """The experiment that `CONFIG... [key=value...]` describes.

    A `data.recipe` is read first and the other keys of `data` override it. Raises UserError for a missing file,
    invalid YAML, an unknown key (with the nearest right name), a value of the wrong type or out of range.
    """
    files, tree = merged_tree(words)
    if not files:
        raise UserError("no config file given: name at least one, e.g. configs/demo.yaml")
    data = tree.get("data")
    if isinstance(data, dict) and data.get("recipe"):
        recipe = data["recipe"]
        path = house.find(str(recipe), "shard recipe")
        base = OmegaConf.create({"name": path.stem})
        tree["data"] = _plain(OmegaConf.merge(base, _read(str(recipe)), OmegaConf.create(data)))
    _put_prompts(tree)
    config = build(Config, tree, "")
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
    return build(RecipeConfig, tree, "")


def merged_tree(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The files among `words`, and what they and the `key=value` words say together, unchecked, named after the first.

    Raises UserError for a missing file and for invalid YAML.
    """
    files, overrides = _split(words)
    tree = _merge([_read(file) for file in files], overrides)
    if files:
        tree.setdefault("name", Path(files[0]).stem)
    return files, tree


def overlaid(config: Config, overlay: dict[str, Any], where: str = "overlay") -> Config:
    """The config with `overlay` merged over it. Raises UserError naming `where` for an unknown key or bad value."""
    if not isinstance(overlay, dict):
        raise UserError(f"{where}={overlay}: expected keys and values to lay over the config")
    try:
        base, file = to_dict(config), config.caption.prompt_file
        asked = (overlay.get("caption") or {}).get("prompt_file", file)
        if asked != file:
            del base["caption"]["prompts"]  # another file's questions take their place
        if (overlay.get("federate") or {}).get("method", config.federate.method) != config.federate.method:
            del base["federate"]["options"]  # another method has others
        tree = laid_over(base, overlay)
        if asked != file:
            _put_prompts(tree)
        return build(Config, tree, "")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def laid_over(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """Plain sections with those of `overlay` merged over them, as OmegaConf does, in a twentieth of its time."""
    merged = dict(base)
    for key, value in overlay.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = laid_over(merged[key], value) if both else value
    return merged


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
        tree = OmegaConf.create(path.read_text(encoding="utf-8"))  # safe, and refuses a key that is there twice
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
    except (OmegaConfBaseException, TypeError, yaml.YAMLError) as error:  # TypeError: a list over a section
        raise UserError(f"config: cannot be merged ({' '.join(str(error).split())})") from None


def _plain(tree: Any) -> dict[str, Any]:
    return typing.cast(dict[str, Any], OmegaConf.to_container(tree, resolve=True))
