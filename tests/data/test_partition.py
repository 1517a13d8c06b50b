import json
from pathlib import Path

import numpy as np
import pytest

from fedscale.config.schema import PartitionConfig
from fedscale.data.longtail import long_tail_counts
from fedscale.data.partition import Partition, make_partition
from fedscale.errors import UserError

LONG_TAIL = np.repeat(np.arange(10), long_tail_counts(500, 100, 10))  # 1,236 samples, 5 in the last class
KINDS = ("iid", "dirichlet", "dirichlet_equal", "pathological", "quantity", "long_tail_client")


def deal(labels: np.ndarray = LONG_TAIL, seed: int = 7, classes: int = 10, **settings: object) -> Partition:
    return make_partition(labels, classes, PartitionConfig(**settings), seed)  # type: ignore[arg-type]


def sizes(partition: Partition) -> list[int]:
    return [len(rows) for rows in partition.clients]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clients", [1, 7, 10, 20, 25, 100])
def test_every_sample_goes_to_exactly_one_client(kind: str, clients: int) -> None:
    partition = deal(kind=kind, clients=clients, classes_per_client=10 if clients == 1 else 3)
    assert len(partition.clients) == clients
    assert sorted(np.concatenate(partition.clients).tolist()) == list(range(len(LONG_TAIL)))
    assert min(sizes(partition)) >= 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_alone_decides(kind: str) -> None:
    first, same, other = deal(kind=kind), deal(kind=kind), deal(kind=kind, seed=8)
    assert all((a == b).all() for a, b in zip(first.clients, same.clients, strict=True))
    assert any(len(a) != len(b) or (a != b).any() for a, b in zip(first.clients, other.clients, strict=True))


@pytest.mark.parametrize("kind", ["iid", "dirichlet_equal"])
def test_equal_partitions_differ_by_one_sample_at_most_and_the_longer_come_first(kind: str) -> None:
    counted = sizes(deal(kind=kind, clients=25))
    assert counted == [50] * 11 + [49] * 14


def skew(partition: Partition, labels: np.ndarray, classes: int = 10) -> float:
    """Mean total variation distance of the clients' class distributions from that of all."""
    whole = np.bincount(labels, minlength=classes) / len(labels)
    own = [np.bincount(labels[rows], minlength=classes) / len(rows) for rows in partition.clients]
    return float(np.mean([np.abs(p - whole).sum() / 2 for p in own]))


@pytest.mark.parametrize("kind", ["dirichlet", "dirichlet_equal"])
def test_a_smaller_alpha_is_more_skewed(kind: str) -> None:
    labels = np.repeat(np.arange(10), 200)
    mild, sharp = (skew(deal(labels, kind=kind, alpha=alpha), labels) for alpha in (100.0, 0.1))
    assert sharp > mild + 0.2


def test_dirichlet_equal_deals_each_group_its_own_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedscale.data import deals

    pieces: list[np.ndarray] = []
    original = deals._deal_group

    def recorded(piece, labels, num_classes, workers, *rest):
        pieces.append(piece)
        parts, note = original(piece, labels, num_classes, workers, *rest)
        assert len(parts) == workers
        assert min(map(len, parts)) >= int(0.5 * len(piece) / workers)
        return parts, note

    monkeypatch.setattr(deals, "_deal_group", recorded)
    deal(kind="dirichlet_equal", clients=25)
    assert [len(piece) for piece in pieces] == [494, 494, 248]  # int(10/25 · 1,236), the last takes the rest
    assert len(np.unique(np.concatenate(pieces))) == len(LONG_TAIL)


def test_pathological_gives_each_client_exactly_its_number_of_classes() -> None:
    for per_client in (1, 2, 5):
        partition = deal(kind="pathological", clients=20, classes_per_client=per_client)
        assert {len(np.unique(LONG_TAIL[rows])) for rows in partition.clients} == {per_client}


@pytest.mark.parametrize("kind", ["dirichlet", "pathological", "quantity", "long_tail_client"])
def test_a_minimum_that_no_draw_gives_is_repaired_and_explained(kind: str) -> None:
    settings = {"kind": kind, "clients": 30, "alpha": 0.05, "min_samples": 41, "tries": 3}
    partition = deal(**settings)
    assert min(sizes(partition)) >= 41
    assert sorted(np.concatenate(partition.clients).tolist()) == list(range(len(LONG_TAIL)))
    assert "moved" in partition.note
    assert all((a == b).all() for a, b in zip(partition.clients, deal(**settings).clients, strict=True))


def test_a_draw_that_suits_needs_no_note() -> None:
    assert {deal(kind=kind).note for kind in KINDS} == {""}


def test_quantity_differs_in_size_and_not_in_classes() -> None:
    labels = np.repeat(np.arange(10), 2000)
    even, uneven = (deal(labels, kind="quantity", clients=20, alpha=alpha) for alpha in (100.0, 0.5))
    assert max(sizes(even)) < 2 * min(sizes(even))
    assert max(sizes(uneven)) > 20 * min(sizes(uneven))
    assert skew(even, labels) < 0.06
    large = Partition(tuple(p for p in uneven.clients if len(p) > 500), "", "quantity", len(labels))
    assert skew(large, labels) < 0.06


def client_counts(partition: Partition, labels: np.ndarray, classes: int = 10) -> np.ndarray:
    return np.stack([np.bincount(labels[rows], minlength=classes) for rows in partition.clients])


def test_on_balanced_data_each_client_has_the_tail_that_was_asked_for() -> None:
    labels = np.repeat(np.arange(10), 5000)
    counts = client_counts(deal(labels, kind="long_tail_client", clients=40, client_imbalance_factor=50), labels)
    falling = -np.sort(-counts, axis=1)
    wanted = 50 ** (-np.arange(10) / 9)
    assert np.abs(falling / falling.sum(1, keepdims=True) - wanted / wanted.sum()).max() < 0.12
    assert np.median(falling[:, 0] / falling[:, -1]) == pytest.approx(50, rel=0.3)
    assert len(set(counts.argmax(1))) >= 8  # each has a head of its own
    assert np.abs(counts.sum(1) - 1250).max() <= 10


def test_a_client_factor_of_one_gives_every_client_the_common_tail() -> None:
    counts = client_counts(deal(kind="long_tail_client", clients=5, client_imbalance_factor=1), LONG_TAIL)
    assert (counts.max(0) - counts.min(0)).max() <= 1
    assert sizes(deal(kind="long_tail_client", clients=5, client_imbalance_factor=1)) == counts.sum(1).tolist()


def test_a_larger_client_factor_is_more_skewed_and_keeps_the_sizes_alike() -> None:
    mild, sharp = (deal(kind="long_tail_client", client_imbalance_factor=factor) for factor in (2, 1000))
    assert skew(sharp, LONG_TAIL) > skew(mild, LONG_TAIL) + 0.2
    assert max(sizes(sharp)) - min(sizes(sharp)) <= 12


def test_a_class_without_training_images_is_dealt_to_nobody() -> None:
    labels = np.repeat([0, 2, 3], 50)
    for kind in KINDS:
        counts = client_counts(deal(labels, kind=kind, clients=5, classes=5, classes_per_client=2), labels, 5)
        assert counts.sum(0).tolist() == [50, 0, 50, 50, 0], kind


def test_an_alpha_that_underflows_still_deals_everything() -> None:
    partition = deal(kind="dirichlet", alpha=1e-300, clients=5, tries=2)
    assert sum(sizes(partition)) == len(LONG_TAIL)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"kind": "iid", "clients": 1237}, "partition.clients=1237"),
        ({"kind": "dirichlet", "clients": 20, "min_samples": 62}, "partition.min_samples=62"),
        ({"kind": "long_tail_client", "client_imbalance_factor": 0.5}, "partition.client_imbalance_factor=0.5"),
        ({"kind": "pathological", "classes_per_client": 11}, "partition.classes_per_client=11"),
        ({"kind": "pathological", "clients": 4, "classes_per_client": 2}, "partition.clients=4"),
        ({"kind": "pathological", "clients": 400, "classes_per_client": 5}, "partition.classes_per_client"),
    ],
)
def test_a_partition_that_cannot_be_met_is_refused(settings: dict, names: str) -> None:
    with pytest.raises(UserError) as error:
        deal(**settings)
    assert names in str(error.value)
    assert "\n" not in str(error.value)


def test_an_export_reads_back_as_it_was(tmp_path: Path) -> None:
    keys = [f"{i:08d}" for i in range(len(LONG_TAIL))]
    partition = deal()
    partition.save(tmp_path / "partition.json", keys)
    back = Partition.load(tmp_path / "partition.json", len(LONG_TAIL), keys)
    assert all((a == b).all() for a, b in zip(partition.clients, back.clients, strict=True))
    assert (back.kind, back.note) == (partition.kind, partition.note)
    from_config = deal(file=str(tmp_path / "partition.json"))
    assert all((a == b).all() for a, b in zip(partition.clients, from_config.clients, strict=True))


def _export(path: Path, clients: object, num_samples: object = 4) -> Path:
    path.write_text(json.dumps({"kind": "iid", "note": "", "num_samples": num_samples, "clients": clients}))
    return path


@pytest.mark.parametrize(
    ("clients", "says"),
    [
        ([{"indices": [0, 1]}, {"indices": [1, 2]}], "two clients"),
        ([{"indices": [0, 4]}], "outside 0 to 3"),
        ([{"indices": [-1]}], "outside 0 to 3"),
        ([{"indices": ["0"]}], "not a partition"),
        ([{"rows": [0]}], "not a partition"),
        ([[0, 1]], "not a partition"),
        ([], "no clients"),
    ],
)
def test_a_bad_export_is_refused(tmp_path: Path, clients: object, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Partition.load(_export(tmp_path / "p.json", clients), 4)


def test_an_export_of_other_data_is_refused(tmp_path: Path) -> None:
    path = _export(tmp_path / "p.json", [{"indices": [0], "keys": ["a"]}, {"indices": [1]}])
    with pytest.raises(UserError, match="is of 4 training images, the data has 5"):
        Partition.load(path, 5)
    with pytest.raises(UserError, match="client 0 has other keys"):
        Partition.load(path, 4, ["b", "a", "c", "d"])
    with pytest.raises(UserError, match=r"has 2 clients, data\.partition\.clients=3"):
        deal(np.zeros(4, dtype=int), file=str(path), clients=3)
    with pytest.raises(UserError, match="no such file"):
        deal(file=str(tmp_path / "absent.json"))
