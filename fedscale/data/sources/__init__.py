"""Where images come from: one file a source, all behind `Source`. `open_source` picks by `recipe.format`."""

from __future__ import annotations

from pathlib import Path

from fedscale import house
from fedscale.config import RecipeConfig
from fedscale.config.data import FORMATS
from fedscale.data.sources.arrays import ArraySource
from fedscale.data.sources.base import Original, Source
from fedscale.errors import UserError

__all__ = ["ArraySource", "Original", "Source", "open_source", "source_folder"]


def open_source(recipe: RecipeConfig) -> Source:
    """The originals that a recipe names. Raises UserError where they are missing or not in the stated format."""
    if recipe.format == "shapes":
        from fedscale.data.sources.shapes import ShapesSource

        return ShapesSource(recipe.shapes, recipe.seed)
    if recipe.format not in FORMATS:
        from fedscale.data.sources.plugged import open_plugged

        return open_plugged(recipe)
    folder = source_folder(recipe)
    if recipe.format == "parquet":
        from fedscale.data.sources.parquet import ParquetSource

        return ParquetSource(folder)
    if recipe.format == "cifar-python":
        from fedscale.data.sources.cifar import CifarSource

        return CifarSource(folder)
    if recipe.format == "imagenet":
        from fedscale.data.sources.imagenet import open_imagenet

        return open_imagenet(folder, recipe)
    from fedscale.data.sources.folder import open_folder

    return open_folder(folder, recipe)


def source_folder(recipe: RecipeConfig, prefix: str = "") -> Path:
    """The folder of the originals. Raises UserError that says how to name it; `prefix` is `data.` in a run's config."""
    remedy = f"give the folder of the originals ({recipe.format}) as {prefix}source=DIR"
    if recipe.source is None:
        raise UserError(f"{prefix}source: {recipe.name or recipe.format} needs a folder of originals; {remedy}")
    try:
        folder = house.find(recipe.source)
    except UserError:
        raise UserError(f"{prefix}source={recipe.source}: no such folder; {remedy}") from None
    if not folder.is_dir():
        raise UserError(f"{prefix}source={recipe.source}: a file; {remedy}")
    return folder
