"""A partition in numbers, each against a table small enough to count by hand."""

import numpy as np
import pytest

from fedscale.config.schema import PartitionConfig
from fedscale.data.longtail import long_tail_counts
from fedscale.data.partition import Partition, make_partition
from fedscale.data.partition_facts import PartitionFacts, by_chance, distance, facts_of

GROUPS = {"many": [0], "medium": [1], "few": [2]}


def facts(rows: list[list[int]]) -> PartitionFacts:
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    partition = Partition(tuple(np.array(r, dtype=np.int64) for r in rows), "", "iid", len(labels))
    return facts_of(partition, labels, ("ant", "bee", "cow"), GROUPS, seed=7)


def test_sizes_classes_and_clients_without_the_tail_are_counted() -> None:
    found = facts([[0, 1, 2, 3], [4, 5, 6], [7]])
    assert found.counts.tolist() == [[4, 0, 0], [0, 2, 1], [0, 0, 1]]
    summary = found.to_dict()
    assert summary["client_sizes"] == {"min": 1, "median": 3.0, "max": 4}
    assert summary["classes_a_client"] == {"min": 1, "median": 1.0, "max": 2}
    assert (summary["clients_without_tail"], summary["tail_classes"]) == (1, 1)


def test_the_distance_is_the_mean_total_variation_to_the_whole() -> None:
    # The whole is (1/2, 1/4, 1/4); (1, 0, 0) is 1/2 from it, (0, 1/2, 1/2) too.
    assert distance(facts([[0, 1, 2, 3], [4, 5, 6, 7]]).counts) == pytest.approx(0.5)
    assert distance(facts([[0, 1, 4, 6], [2, 3, 5, 7]]).counts) == pytest.approx(0.0)
    assert distance(facts([[0, 1, 2, 3, 4, 5, 6, 7], []]).counts) == pytest.approx(0.0)


def test_a_deal_by_chance_keeps_the_sizes_and_the_classes_and_is_what_iid_comes_to() -> None:
    labels = np.repeat(np.arange(10), long_tail_counts(500, 100, 10))
    iid, skewed = (
        facts_of(
            make_partition(labels, 10, PartitionConfig(kind=kind), 7),
            labels,
            tuple("abcdefghij"),
            {"many": [0], "medium": list(range(1, 9)), "few": [9]},
            7,
        )
        for kind in ("iid", "dirichlet_equal")
    )
    dealt = by_chance(iid.counts, 7)
    assert (dealt.sum(0) == iid.counts.sum(0)).all() and (dealt.sum(1) == iid.counts.sum(1)).all()
    assert distance(iid.counts) == pytest.approx(distance(dealt), abs=0.03)
    assert distance(skewed.counts) > distance(by_chance(skewed.counts, 7)) + 0.2


def test_without_few_classes_no_client_is_said_to_lack_them() -> None:
    whole = facts([[0, 1, 2, 3], [4, 5, 6, 7]])
    none = PartitionFacts("iid", "", 7, whole.counts, whole.class_names, {"many": [0], "medium": [1, 2], "few": []})
    assert none.to_dict()["clients_without_tail"] is None
