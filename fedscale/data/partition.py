"""Which client holds which training images; drawn, checked, exported and read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedscale import files, rng
from fedscale.config.schema import PartitionConfig
from fedscale.data import deals
from fedscale.data.client_tails import deal_long_tail_client
from fedscale.errors import UserError


@dataclass(frozen=True)
class Partition:
    """For each client the int64 rows of the train store that it holds, disjoint. `note` explains a repair, else ''."""

    clients: tuple[np.ndarray, ...]
    note: str
    kind: str
    num_samples: int  # of the store that the rows point into

    def save(self, path: Path | str, keys: Sequence[str] | None = None) -> None:
        """Export as JSON, a client a line; with the store's `keys` each row is named by its key as well."""
        head = {"kind": self.kind, "note": self.note, "num_samples": self.num_samples, "num_clients": len(self.clients)}
        lines = []
        for rows in self.clients:
            client: dict[str, list[int] | list[str]] = {"indices": rows.tolist()}
            if keys is not None:
                client["keys"] = [keys[row] for row in rows.tolist()]
            lines.append(json.dumps(client))
        text = json.dumps(head, ensure_ascii=False)[:-1] + ', "clients": [\n' + ",\n".join(lines) + "\n]}\n"
        files.write_text(Path(path), text)

    @classmethod
    def load(cls, path: Path | str, num_samples: int | None = None, keys: Sequence[str] | None = None) -> Partition:
        """Read an export back. Raises UserError where it is malformed, overlaps, or is of other samples or `keys`."""
        path = Path(path)
        tree = files.read_json(path)
        try:
            held = int(tree["num_samples"])
            clients = tuple(_rows(client["indices"]) for client in tree["clients"])
            named = [client.get("keys") for client in tree["clients"]]
            note, kind = str(tree.get("note", "")), str(tree["kind"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"{path}: not a partition ({' '.join(str(error).split())}); export it again") from None
        if not clients:
            raise UserError(f"{path}: has no clients; export it again")
        if num_samples is not None and held != num_samples:
            raise UserError(f"{path}: is of {held} training images, the data has {num_samples}; use the same shards")
        rows = np.concatenate(clients)
        if len(rows) and not (rows.min() >= 0 and rows.max() < held):
            raise UserError(f"{path}: has an index outside 0 to {held - 1}; export it again")
        if len(np.unique(rows)) != len(rows):
            raise UserError(f"{path}: gives an image to two clients; expected disjoint clients")
        if keys is not None:
            for number, (indices, names) in enumerate(zip(clients, named, strict=True)):
                if names is not None and names != [keys[row] for row in indices.tolist()]:
                    raise UserError(
                        f"{path}: client {number} has other keys than the training images; use the same shards"
                    )
        return cls(clients, note, kind, held)


def make_partition(
    labels: np.ndarray, num_classes: int, config: PartitionConfig, seed: int, keys: Sequence[str] | None = None
) -> Partition:
    """Deal `labels` (int [N]) to `config.clients` clients, or read `config.file`; a function of its arguments alone.

    Where `config.tries` draws do not give every client its minimum, the best is repaired, and `note` says so. Raises
    UserError for a partition that cannot be met.
    """
    labels = np.asarray(labels)
    assert len(labels) == 0 or (labels.min() >= 0 and labels.max() < num_classes), "labels from 0 to num_classes - 1"
    if config.file is not None:
        return _read(config, len(labels), keys)
    needed = config.clients * config.min_samples
    if needed > len(labels):
        raise UserError(
            f"data.partition.clients={config.clients}: at data.partition.min_samples={config.min_samples} they need "
            f"{needed} training images, there are {len(labels)}; lower one of the two"
        )
    generator = rng.numpy_generator(seed, "partition", config.kind)
    if config.kind == "iid":
        parts, note = deals.deal_iid(len(labels), config.clients, generator)
    elif config.kind == "quantity":
        parts, note = deals.deal_quantity(
            len(labels), config.clients, config.alpha, config.min_samples, config.tries, generator
        )
    elif config.kind == "long_tail_client":
        factor = config.client_imbalance_factor
        parts, note = deal_long_tail_client(labels, num_classes, config.clients, factor, generator)
    elif config.kind == "dirichlet":
        parts, note = deals.deal_dirichlet(
            labels, num_classes, config.clients, config.alpha, config.min_samples, config.tries, generator
        )
    elif config.kind == "dirichlet_equal":
        parts, note = deals.deal_dirichlet_equal(
            labels, num_classes, config.clients, config.alpha, config.tries, generator
        )
    else:
        parts, note = deals.deal_pathological(labels, num_classes, config.clients, config.classes_per_client, generator)
    if deals.smallest(parts) < config.min_samples:  # of the kinds whose sizes are not drawn, and so not drawn anew
        what = "label shard" if config.kind == "pathological" else "client"
        reason = f"a {what} holds fewer than {config.min_samples} samples"
        parts, note = deals.repair(parts, config.min_samples, reason, generator)
        if config.kind == "pathological":
            note += f"; these hold more than {config.classes_per_client} classes now"
    return Partition(tuple(np.asarray(part, dtype=np.int64) for part in parts), note, config.kind, len(labels))


def _read(config: PartitionConfig, num_samples: int, keys: Sequence[str] | None) -> Partition:
    assert config.file is not None
    partition = Partition.load(config.file, num_samples, keys)
    if len(partition.clients) != config.clients:
        raise UserError(
            f"{config.file}: has {len(partition.clients)} clients, data.partition.clients={config.clients}; make them "
            "equal"
        )
    poorest = min(len(rows) for rows in partition.clients)
    if poorest < config.min_samples:
        raise UserError(
            f"{config.file}: a client has {poorest} images, below data.partition.min_samples={config.min_samples}"
        )
    return partition


def _rows(values: list[int]) -> np.ndarray:
    if not isinstance(values, list) or not all(isinstance(value, int) for value in values):
        raise ValueError("indices are not a list of whole numbers")
    return np.array(values, dtype=np.int64)
