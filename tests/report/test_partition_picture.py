"""The picture of a partition: classes from head to tail, readable from a few cells to a million."""

from pathlib import Path

import numpy as np
import pytest

from fedscale.data.partition_facts import PartitionFacts
from fedscale.errors import UserError
from fedscale.report.partition_picture import MOST, draw, save_picture


def facts(counts: np.ndarray) -> PartitionFacts:
    classes = counts.shape[1]
    groups = {"many": [0], "medium": list(range(1, classes - 1)), "few": [classes - 1]}
    return PartitionFacts("iid", "", 7, counts, tuple(f"class-{c}" for c in range(classes)), groups)


SMALL = facts(np.array([[5, 300, 0, 1], [7, 20, 40, 0]]))


def texts(made) -> list[str]:
    return [text.get_text() for axes in made.axes for text in axes.texts]


def test_classes_go_from_head_to_tail_and_cells_show_their_numbers() -> None:
    made = draw(SMALL, "two clients")
    middle = made.axes[0]
    assert [label.get_text() for label in middle.get_yticklabels()] == ["class-1", "class-2", "class-0", "class-3"]
    assert {"300", "40", "20", "7", "5", "1"} <= set(texts(made)) and "0" not in texts(made)
    assert middle.images[0].get_array().filled(0).tolist() == [[300, 20], [0, 40], [5, 7], [1, 0]]


def test_groups_are_parted_where_they_change() -> None:
    counts = np.array([[50, 30, 20, 4]])
    made = draw(facts(counts), "")
    assert [line.get_ydata()[0] for line in made.axes[0].lines] == [1, 3]
    assert [text for text in texts(made) if text.isalpha()] == ["many", "medium", "few"]


def test_a_thousand_by_a_thousand_is_folded_to_means_of_neighbours() -> None:
    counts = np.random.default_rng(1).poisson(0.1, (1001, 1000))
    shown = draw(facts(counts), "").axes[0].images[0].get_array()
    assert max(shown.shape) <= MOST
    order = np.argsort(-counts.sum(0), kind="stable")
    assert shown[0, 0] == pytest.approx(counts[:3, order[:3]].mean())
    assert np.ma.filled(shown, 0.0)[-1, -1] == pytest.approx(counts[999:, order[999:]].mean())


@pytest.mark.parametrize(("suffix", "starts"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_equal_partitions_are_equal_files(tmp_path: Path, suffix: str, starts: bytes) -> None:
    for name in ("one", "two"):
        save_picture(SMALL, tmp_path / f"{name}.{suffix}", "two clients")
    one, two = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("one", "two"))
    assert one == two and one.startswith(starts)


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--plot .*mine\.pdf: expected a file that ends in \.png or \.svg"):
        save_picture(SMALL, tmp_path / "mine.pdf", "")
    assert not list(tmp_path.iterdir())


def test_a_client_of_one_image_and_empty_clients_can_be_drawn() -> None:
    draw(facts(np.array([[1, 0, 0], [0, 0, 0]])), "").draw_without_rendering()
