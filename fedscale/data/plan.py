"""Which original goes to which split: the clients' long tail, the open pool, its validation part, the test set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedscale import rng
from fedscale.config import RecipeConfig
from fedscale.data.longtail import long_tail_counts
from fedscale.data.sources import Source
from fedscale.errors import UserError

ORIGIN = {
    "train": "train",
    "pool": "train",
    "validation": "train",
    "test": "test",
}  # the source's split of each of ours


@dataclass(frozen=True)
class Plan:
    """`splits`: positions in the source's split `ORIGIN[split]`, shuffled; `labels` as the source gives them."""

    class_names: tuple[str, ...]
    splits: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]  # by the source's split
    notes: tuple[str, ...]  # what a user should know of it


def make_plan(recipe: RecipeConfig, source: Source) -> Plan:
    """Deal a source's originals by a recipe; a function of (recipe, labels) alone.

    Raises UserError for too many classes, one without training or test images, or a long tail that the source has not
    enough images for.
    """
    names = _class_names(recipe, source)
    labels = {split: source.labels(split) for split in ("train", "test")}
    for split, values in labels.items():
        if len(values) and (values.min() < 0 or values.max() >= len(names)):
            raise UserError(
                f"{_where(recipe)}: {split} labels run from {values.min()} to {values.max()}, expected 0 to "
                f"{len(names) - 1} for {len(names)} class names"
            )
    by_class = [np.flatnonzero(labels["train"] == label) for label in range(len(names))]
    for name, members in zip(names, by_class, strict=True):
        if len(members) == 0:
            raise UserError(f"{_where(recipe)}: class {name} has no training images; expected at least 1")
    tested = np.bincount(labels["test"], minlength=len(names))
    if tested.any() and not tested.all():
        bare = names[int(np.argmin(tested))]
        raise UserError(f"{_where(recipe)}: class {bare} has no test images; expected at least 1 of every class")
    notes: list[str] = []
    if source.listed is not None:
        train, pool = _by_list(recipe, source.listed, labels["train"], names)
        if recipe.open_pool.enabled and recipe.open_pool.reserve:
            notes.append("open_pool.reserve is ignored: train_list decides which images are left over for the pool")
    else:
        train, pool = _by_count(recipe, by_class, names)
    splits = {"train": np.concatenate(train), "test": np.arange(len(labels["test"]))}
    if recipe.open_pool.enabled:
        pool, validation = _validation(recipe, pool, names, notes)
        splits |= {"pool": np.concatenate(pool), "validation": np.concatenate(validation)}
        missing = [name for name, members in zip(names, pool, strict=True) if len(members) == 0]
        if missing:
            few = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            notes.append(f"the open pool holds no image of {few}: the clients hold them all (set open_pool.reserve)")
    if not len(labels["test"]):
        notes.append("the source has no test images: there will be no test split")
    shuffled = {
        split: members[rng.numpy_generator(recipe.seed, "shuffle", split).permutation(len(members))]
        for split, members in splits.items()
        if len(members)
    }
    return Plan(names, shuffled, labels, tuple(notes))


def _where(recipe: RecipeConfig) -> str:
    return f"source={recipe.source}" if recipe.source else recipe.name or recipe.format


def _class_names(recipe: RecipeConfig, source: Source) -> tuple[str, ...]:
    names = recipe.class_names or source.class_names
    if not names:
        raise UserError(
            f"class_names: {_where(recipe)} does not name its classes; list them in label order in the recipe"
        )
    held = len(source.class_names) or int(source.labels("train").max(initial=-1)) + 1
    if recipe.classes is not None and recipe.classes > held:
        raise UserError(f"classes={recipe.classes}: more than the {held} that {_where(recipe)} has")
    for key, count in (("classes", recipe.classes), ("class_names", len(names))):
        if count is not None and count != held:
            raise UserError(f"{key}: {count} classes, but {_where(recipe)} has {held}; expected as many")
    if source.class_names and set(names) == set(source.class_names) and names != source.class_names:
        wrong = next(i for i, name in enumerate(names) if name != source.class_names[i])
        raise UserError(
            f"class_names: label {wrong} is {source.class_names[wrong]} in {_where(recipe)}, the recipe says "
            f"{names[wrong]}; list them in label order, or leave them out"
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(
            f"class_names: {repeated[0]} appears twice; expected different names, since shards count by name"
        )
    return names


def _by_count(
    recipe: RecipeConfig, by_class: list[np.ndarray], names: tuple[str, ...]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Members of train and pool, class by class: the reserve first, then the long tail, the rest left over."""
    reserve = recipe.open_pool.reserve if recipe.open_pool.enabled else 0
    sizes = [len(members) - reserve for members in by_class]
    for name, members, size in zip(names, by_class, sizes, strict=True):
        if size <= 0:
            raise UserError(
                f"open_pool.reserve={reserve}: leaves nothing of class {name} ({len(members)} images); lower it"
            )
    wanted = sizes
    if recipe.imbalance_factor is not None:
        wanted = long_tail_counts(max(sizes), recipe.imbalance_factor, len(names))
        if wanted[-1] == 0:
            raise UserError(
                f"imbalance_factor={recipe.imbalance_factor:g}: leaves class {names[-1]} empty; "
                f"expected {max(sizes)} or less"
            )
    train, pool = [], []
    for label, (name, members, size, count) in enumerate(zip(names, by_class, sizes, wanted, strict=True)):
        if count > size:
            raise UserError(
                f"imbalance_factor={recipe.imbalance_factor:g}: class {name} needs {count} images, {_where(recipe)} "
                f"has {size} beside a reserve of {reserve}; raise the factor, or order class_names from large to small"
            )
        drawn = members[rng.numpy_generator(recipe.seed, "select", label).permutation(len(members))]
        train.append(drawn[reserve : reserve + count])
        pool.append(np.concatenate([drawn[:reserve], drawn[reserve + count :]]))
    return train, pool


def _by_list(
    recipe: RecipeConfig, listed: np.ndarray, labels: np.ndarray, names: tuple[str, ...]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The list's images for the clients, the others for the pool; the list leaves nothing for a factor to decide."""
    if recipe.imbalance_factor is not None:
        raise UserError("imbalance_factor: the list of train_list is the long tail already; expected one of the two")
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[listed] = True
    train, pool = [], []
    for label, name in enumerate(names):
        train.append(np.flatnonzero(chosen & (labels == label)))
        if len(train[-1]) == 0:
            raise UserError(f"train_list={recipe.train_list}: lists no image of class {name}; expected at least 1")
        left = np.flatnonzero(~chosen & (labels == label))
        pool.append(left[rng.numpy_generator(recipe.seed, "select", label).permutation(len(left))])
    return train, pool


def _validation(
    recipe: RecipeConfig, pool: list[np.ndarray], names: tuple[str, ...], notes: list[str]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """As many images of each class taken out of the pool as asked for, or as the barest class has."""
    wanted = recipe.open_pool.validation
    sizes = [len(members) for members in pool]
    count = min(wanted, *sizes)
    if count < wanted:
        barest = names[int(np.argmin(sizes))]
        notes.append(
            f"validation: {count} images a class instead of {wanted}, as the pool has {count} of class {barest} "
            "(set open_pool.reserve)" + ("" if count else "; there will be no validation split")
        )
    return [members[count:] for members in pool], [members[:count] for members in pool]
