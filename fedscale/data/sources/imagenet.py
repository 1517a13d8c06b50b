"""ImageNet (`train/WNID/*.JPEG`, `val/WNID/*.JPEG`), whole or cut by ImageNet-LT's list files.

Source of the lists: Liu et al., CVPR 2019 (OLTR), ImageNet_LT_train.txt and ImageNet_LT_test.txt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from fedscale.config import RecipeConfig
from fedscale.data.sources.folder import (
    FilesSource,
    class_folders,
    nothing,
    positions_of,
    read_list,
    scan,
    split_folders,
)
from fedscale.errors import UserError

WORDS = "LOC_synset_mapping.txt"  # of ImageNet as Kaggle serves it: lines of `WNID word, another word, …`


def open_imagenet(root: Path, recipe: RecipeConfig) -> FilesSource:
    """Labels are the list's, or the order of the sorted WordNet ids; `recipe.class_names` are the words for them.

    Without these, the words are the first ones of `LOC_synset_mapping.txt` in `root`, or else the ids themselves.

    With a list, the unlisted training images of the listed folders are what the open pool is made of.
    """
    train, test = split_folders(root)
    if not train:
        raise UserError(f"{root}: no train folder; expected ImageNet's train/WNID/*.JPEG and val/WNID/*.JPEG")
    listed = None
    if recipe.train_list is None:
        labels = {name: label for label, name in enumerate(class_folders(root, train))}
        held = scan(root, train, labels)
    else:
        paths, path_labels = read_list(root, recipe.train_list, "train_list")
        labels = _folder_labels(paths, path_labels, recipe.train_list)
        # Scanning 1,281,167 files takes a while on a network disk, and only the pool needs the unlisted ones.
        held = scan(root, train, labels) if recipe.open_pool.enabled else (paths, path_labels)
        listed = positions_of(paths, path_labels, held, recipe.train_list)
    if recipe.test_list is not None:
        tested = read_list(root, recipe.test_list, "test_list")
    else:
        tested = scan(root, test, labels) if test else nothing()
    names = recipe.class_names or _names(root, sorted(labels, key=lambda name: labels[name]))
    return FilesSource(root, names, {"train": held, "test": tested}, listed)


def _folder_labels(paths: list[str], labels: np.ndarray, file: str) -> dict[str, int]:
    """Label of each folder that a list speaks of. Raises UserError where the two are not one to one."""
    found: dict[str, int] = {}
    for path, label in zip(paths, labels.tolist(), strict=True):
        folder = PurePosixPath(path).parent.name
        if found.setdefault(folder, label) != label:
            raise UserError(
                f"{file}: folder {folder} has labels {found[folder]} and {label}; expected one label a folder"
            )
    if len(set(found.values())) != len(found):
        raise UserError(f"{file}: two folders share a label; expected one folder a label")
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _names(root: Path, folders: Sequence[str]) -> tuple[str, ...]:
    """A name a folder, all different: its first word in `root`'s WORDS, with its id where two have the same one."""
    path = root / WORDS
    if not path.is_file():
        return tuple(folders)
    pairs = (line.partition(" ") for line in path.read_text(encoding="utf-8").splitlines())
    words = {folder: rest.partition(",")[0].strip() for folder, _, rest in pairs}
    bare = [folder for folder in folders if not words.get(folder)]
    if bare:
        raise UserError(
            f"{path}: has no words for {bare[0]}; expected a line `{bare[0]} word, …` for each class folder"
        )
    times = Counter(words[folder] for folder in folders)
    return tuple(words[folder] if times[words[folder]] == 1 else f"{words[folder]} ({folder})" for folder in folders)
