"""Small sources of real image files, and shards built from them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedscale.config import RecipeConfig
from fedscale.config.schema import OpenPoolConfig
from fedscale.data.build import build_shards
from fedscale.data.manifest import Manifest
from fedscale.progress import SilentReporter

NAMES = ("ant", "bee", "cow")


def picture(seed: int, size: tuple[int, int] = (32, 32), form: str = "JPEG") -> bytes:
    """An encoded image of its own for each seed: (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=form)
    return buffer.getvalue()


def write_parquet(path: Path, labels: list[int], *, broken: tuple[int, ...] = (), names: tuple[str, ...] = ()) -> None:
    """A file as the hub serves it: `img` struct, `label`, class names in the schema where given; row groups of 7."""
    rows = [
        {"bytes": b"no image" if i in broken else picture(1000 * label + i), "path": f"{NAMES[label]}/{i}.jpg"}
        for i, label in enumerate(labels)
    ]
    table = pa.table({"img": rows, "label": pa.array(labels, pa.int64())})
    if names:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=7)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """20 training and 4 test images of each of three classes, interleaved."""
    folder = tmp_path / "parquet"
    write_parquet(folder / "train-00000-of-00001.parquet", [0, 1, 2] * 20, names=NAMES)
    write_parquet(folder / "test-00000-of-00001.parquet", [2, 1, 0] * 4, names=NAMES)
    return folder


@pytest.fixture
def recipe(parquet: Path) -> RecipeConfig:
    """IF 4 with 4 images a class reserved: 16, 8, 4 for the clients; 2 a class of the pool for validation."""
    return RecipeConfig(
        name="insects",
        format="parquet",
        source=str(parquet),
        imbalance_factor=4,
        samples_per_shard=10,
        open_pool=OpenPoolConfig(reserve=4, validation=2),
    )


@pytest.fixture
def build(tmp_path: Path) -> Callable[[RecipeConfig], Manifest]:
    """Builds a recipe into `shards` below the test's folder."""
    return lambda recipe: build_shards(recipe, tmp_path / "shards", SilentReporter())
