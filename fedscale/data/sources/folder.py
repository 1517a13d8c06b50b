"""Image files: `root/class/*.jpg`, or `root/train/class` with `root/test|val/class`, or list files of `path label`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedscale import house
from fedscale.config import RecipeConfig
from fedscale.data.sources.base import Original
from fedscale.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
TEST_FOLDERS = ("test", "val", "validation")


@dataclass(frozen=True)
class Files:
    """Some image files below `root`, read one at a time."""

    root: Path
    paths: list[str]

    def __iter__(self) -> Iterator[Original]:
        for name in self.paths:
            path = self.root / name
            try:
                yield Original(name, path.read_bytes())
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror}); expected an image of the source") from None


class FilesSource:
    """Images as files below `root`: for each split the relative paths and their labels."""

    in_order = False

    def __init__(
        self,
        root: Path,
        class_names: tuple[str, ...],
        files: dict[str, tuple[list[str], np.ndarray]],
        listed: np.ndarray | None = None,
    ) -> None:
        self._root, self._files = root, files
        self.class_names, self.listed = class_names, listed

    def labels(self, split: str) -> np.ndarray:
        return self._files[split][1]

    def read(self, split: str, indices: np.ndarray) -> Files:
        paths = self._files[split][0]
        return Files(self._root, [paths[position] for position in indices.tolist()])


def open_folder(root: Path, recipe: RecipeConfig) -> FilesSource:
    """Classes are the folders' names, sorted, or in the order of `recipe.class_names`, which must name them all."""
    train, test = split_folders(root)
    names = class_folders(root, train)
    if recipe.class_names:
        missing = sorted({*recipe.class_names}.symmetric_difference(names))
        if missing:
            raise UserError(
                f"class_names: {missing[0]} is not both listed and a folder of {root / train}; name all its folders"
            )
        names = recipe.class_names
    by_name = {name: label for label, name in enumerate(names)}
    files = {"train": scan(root, train, by_name), "test": scan(root, test, by_name) if test else nothing()}
    listed = None
    if recipe.train_list is not None:
        paths, labels = read_list(root, recipe.train_list, "train_list")
        listed = positions_of(paths, labels, files["train"], recipe.train_list)
    if recipe.test_list is not None:
        files["test"] = read_list(root, recipe.test_list, "test_list")
    return FilesSource(root, names, files, listed)


def split_folders(root: Path) -> tuple[str, str]:
    """Names of the train and test folder below `root`: ("", "") where the classes lie in `root` itself."""
    if not (root / "train").is_dir():
        return "", ""
    return "train", next((name for name in TEST_FOLDERS if (root / name).is_dir()), "")


def class_folders(root: Path, split: str) -> tuple[str, ...]:
    """The class folders of a split, sorted. Raises UserError where there are none."""
    names = tuple(
        sorted(entry.name for entry in (root / split).iterdir() if entry.is_dir() and not entry.name.startswith("."))
    )
    if not names:
        raise UserError(f"{root / split}: no class folders; expected {root / split}/CLASS/*.jpg")
    return names


def scan(root: Path, split: str, labels: dict[str, int]) -> tuple[list[str], np.ndarray]:
    """Relative paths and labels of all images of the given class folders, sorted; an absent folder has none."""
    paths: list[str] = []
    found: list[int] = []
    for name, label in labels.items():
        folder = root / split / name
        inside = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
        paths += [f"{split}/{name}/{file}" if split else f"{name}/{file}" for file in inside]
        found += [label] * len(inside)
    return paths, np.array(found, dtype=np.int64)


def nothing() -> tuple[list[str], np.ndarray]:
    """A split without images."""
    return [], np.empty(0, dtype=np.int64)


def read_list(root: Path, file: str, key: str) -> tuple[list[str], np.ndarray]:
    """A list file of `path label` lines, found as given or inside `root`. Raises UserError naming the bad line."""
    where = root / file
    path = where if where.is_file() else _find(file, root, key)
    paths, labels = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdigit() or Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(
                f"{path}: line {number} is not `path label` with a path below the source (found {line.strip()[:60]!r})"
            )
        paths.append(name)
        labels.append(int(label))
    if not paths:
        raise UserError(f"{path}: an empty list; expected lines of `path label`")
    return paths, np.array(labels, dtype=np.int64)


def positions_of(paths: list[str], labels: np.ndarray, held: tuple[list[str], np.ndarray], file: str) -> np.ndarray:
    """Positions of listed paths among those held. Raises UserError for a missing or repeated image or another label."""
    position = {path: i for i, path in enumerate(held[0])}
    found = np.empty(len(paths), dtype=np.int64)
    for i, (path, label) in enumerate(zip(paths, labels.tolist(), strict=True)):
        if path not in position:
            raise UserError(f"{file}: {path} is not in the source; expected all listed images below its folder")
        found[i] = position[path]
        if held[1][found[i]] != label:
            raise UserError(
                f"{file}: {path} has label {label}, its folder has {held[1][found[i]]}; expected one label a folder"
            )
    if len(np.unique(found)) != len(found):
        raise UserError(f"{file}: lists an image twice; expected each once")
    return found


def _find(file: str, root: Path, key: str) -> Path:
    try:
        return house.find(file, "list file")
    except UserError:
        raise UserError(
            f"{key}={file}: no such list file, neither here nor in {root}; give its path as {key}=FILE"
        ) from None
