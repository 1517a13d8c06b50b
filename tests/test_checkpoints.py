"""The newest complete checkpoint wins; two are kept; a torn one is never read."""

from pathlib import Path

import pytest

from fedscale.checkpoints import checkpoint, newest


def save(folder: Path, number: int) -> None:
    with checkpoint(folder, "round", number) as temporary:
        (temporary / "state").write_text(str(number))


def test_two_are_kept_and_the_newest_wins(tmp_path: Path) -> None:
    assert newest(tmp_path, "round") is None
    for number in (8, 9, 10):
        save(tmp_path, number)
    assert newest(tmp_path, "round") == (10, tmp_path / "round_10")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round_10", "round_9"]


def test_one_without_its_marker_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "round_2" / "COMPLETE").unlink()
    assert newest(tmp_path, "round") == (1, tmp_path / "round_1")
    save(tmp_path, 2)
    assert newest(tmp_path, "round") == (2, tmp_path / "round_2")


def test_a_failure_while_saving_leaves_the_last_one_in_force(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(RuntimeError), checkpoint(tmp_path, "round", 2) as temporary:
        (temporary / "state").write_text("half")
        raise RuntimeError
    assert newest(tmp_path, "round") == (1, tmp_path / "round_1")
    assert [p.name for p in tmp_path.iterdir()] == ["round_1"]
