"""`cifar-10-batches-py` and `cifar-100-python`, read by an unpickler that can make numpy arrays and nothing else."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedscale.data.images import encode_png
from fedscale.data.sources.base import Original
from fedscale.errors import UserError

ADMITTED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
}
LAYOUTS = (  # marker file, train files, test files, label key, names file and key
    ("batches.meta", tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",), "labels", "label_names"),
    ("meta", ("train",), ("test",), "fine_labels", "fine_label_names"),
)


def _bytes_of(text: str, encoding: str) -> bytes:
    """Stands for `_codecs.encode`, by which Python 3 writes an array's bytes at protocol 2: Latin-1 alone."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _bytes_of
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def load_batch(path: Path) -> dict[str, Any]:
    """A CIFAR pickle as a dict. Raises UserError for a pickle that holds anything but arrays, lists and texts."""
    try:
        tree = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected the extracted archive of CIFAR (python version)") from None
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, ImportError) as error:
        raise UserError(f"{path}: refused, not a CIFAR batch ({error}); extract the original archive again") from None
    if not isinstance(tree, dict):
        raise UserError(
            f"{path}: refused, not a CIFAR batch (a {type(tree).__name__}); extract the original archive again"
        )
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in tree.items()}


@dataclass(frozen=True)
class BarePixels:
    """Images as the batches hold them, encoded one at a time: uint8 [N, 3072], planes of red, green, blue."""

    names: list[str]
    pixels: np.ndarray

    def __iter__(self) -> Iterator[Original]:
        for name, row in zip(self.names, self.pixels, strict=True):
            yield Original(name, encode_png(np.ascontiguousarray(row.reshape(3, 32, 32).transpose(1, 2, 0))))


class CifarSource:
    """CIFAR-10 or CIFAR-100; images are handed out as PNG, since the source has bare pixels."""

    in_order = False
    listed = None

    def __init__(self, folder: Path) -> None:
        found = [
            (root, layout)
            for root in (folder, folder / "cifar-10-batches-py", folder / "cifar-100-python")
            for layout in LAYOUTS
            if (root / layout[0]).is_file()
        ]
        if not found:
            raise UserError(
                f"{folder}: no CIFAR here; expected batches.meta (CIFAR-10) or meta (CIFAR-100) beside the batches"
            )
        self._root, (meta, train, test, self._label_key, names_key) = found[0]
        self._files = {"train": train, "test": test}
        names = load_batch(self._root / meta).get(names_key, ())
        self.class_names = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
        self._splits: dict[str, tuple[np.ndarray, np.ndarray, list[str]]] = {}

    def labels(self, split: str) -> np.ndarray:
        return self._load(split)[1]

    def read(self, split: str, indices: np.ndarray) -> BarePixels:
        """The rows themselves, 15 MB for 5,000: a worker would hold ten times that to find them in the batches."""
        pixels, _, names = self._load(split)
        return BarePixels([names[position] for position in indices.tolist()], pixels[indices])

    def _load(self, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Pixels uint8 [N, 3072], labels int64 [N] and names, kept: 184 MB for all of CIFAR."""
        if split not in self._splits:
            pixels, labels, names = [], [], []
            for file in self._files[split]:
                path = self._root / file
                batch = load_batch(path)
                data, batch_labels = batch.get("data"), batch.get(self._label_key)
                if (
                    not isinstance(data, np.ndarray)
                    or data.dtype != np.uint8
                    or data.ndim != 2
                    or data.shape[1] != 3072
                ):
                    raise UserError(f"{path}: expected `data` of uint8 [N, 3072]; extract the original archive again")
                if not isinstance(batch_labels, list) or len(batch_labels) != len(data):
                    raise UserError(f"{path}: expected a label in `{self._label_key}` for each of {len(data)} images")
                pixels.append(data)
                labels += batch_labels
                given = batch.get("filenames", [])
                texts = [name.decode() if isinstance(name, bytes) else str(name) for name in given]
                names += texts if len(texts) == len(data) else [f"{file}/{i}" for i in range(len(data))]
            self._splits[split] = np.concatenate(pixels), np.array(labels, dtype=np.int64), names
        return self._splits[split]
