"""The journal: what a killed worker leaves is used as far as whole groups go, and no further."""

import pytest

from fedscale.server.caption.journal import Journal
from fedscale.server.caption.rows import Row

MADE_BY = {"engine": "hf", "input": "abc"}


def rows(*numbers: int) -> list[Row]:
    return [Row(f"{n}", "ok", "cat", texts={"description": [f"text {n}"]}) for n in numbers]


@pytest.fixture
def path(tmp_path):
    with Journal(tmp_path / "00000.part.jsonl", MADE_BY) as journal:
        journal.begin()
        journal.add(rows(0, 1))
        journal.add(rows(2, 3))
    return tmp_path / "00000.part.jsonl"


def test_whole_groups_come_back(path):
    with Journal(path, MADE_BY) as journal:
        assert list(journal.rows.values()) == rows(0, 1, 2, 3) and journal.begun == 0


def test_cut_at_any_byte_only_whole_groups_are_left_and_work_goes_on(path):
    whole = path.read_bytes()
    found = set()
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        with Journal(path, MADE_BY) as journal:
            found.add(len(journal.rows))
            journal.add(rows(8, 9))
        with Journal(path, MADE_BY) as journal:
            assert list(journal.rows)[-2:] == ["8", "9"]
    assert found == {0, 2, 4}


def test_another_configs_journal_is_not_used(path):
    with Journal(path, {**MADE_BY, "engine": "vllm"}) as journal:
        assert not journal.rows
    with Journal(path, MADE_BY) as journal:
        assert not journal.rows


def test_crashes_without_progress_are_counted_and_a_stop_or_progress_forgives_them(path):
    for expected in (1, 2, 3):
        with Journal(path, MADE_BY) as journal:
            journal.begin()
            assert journal.begun == expected
    with Journal(path, MADE_BY) as journal:
        assert journal.begun == 3
        journal.stop()
    with Journal(path, MADE_BY) as journal:
        assert journal.begun == 0
        journal.begin()
        journal.add(rows(4))
    with Journal(path, MADE_BY) as journal:
        assert journal.begun == 0 and len(journal.rows) == 5


def test_two_workers_never_have_one_journal(path):
    with Journal(path, MADE_BY), pytest.raises(BlockingIOError), Journal(path, MADE_BY):
        pass
    with Journal(path, MADE_BY) as journal:
        assert len(journal.rows) == 4


def test_rows_taken_back_stay_away(path):
    with Journal(path, MADE_BY) as journal:
        journal.forget(["0", "3"])
        assert list(journal.rows) == ["1", "2"]
    with Journal(path, MADE_BY) as journal:
        assert list(journal.rows) == ["1", "2"]
        journal.add(rows(3))
    with Journal(path, MADE_BY) as journal:
        assert list(journal.rows) == ["1", "2", "3"]
