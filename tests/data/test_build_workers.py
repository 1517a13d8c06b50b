"""The pool of processes that build shards, by work that says where and when it ran."""

import os
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from fedscale.data.workers import Meter, in_processes
from fedscale.errors import UserError
from fedscale.progress import SilentReporter


class Counting:
    def __init__(self) -> None:
        self.done = 0

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count


def square(number: int, meter: Meter) -> int:
    for _ in range(number):
        meter.advance()
    return number * number


def process(number: int, meter: Meter) -> tuple[int, list[str]]:
    return os.getpid(), sorted(sys.modules)


def count_failures(number: int, meter: Meter) -> int:
    return meter.fail()


def fail_at_three(number: int, meter: Meter) -> int:
    if number == 3:
        raise UserError("three: expected anything else")
    return number


def die_at_three(number: int, meter: Meter) -> int:
    if number == 3:
        os._exit(9)
    return number


def for_ever(number: int, meter: Meter) -> int:
    while number:
        meter.advance()
    return number


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_results_come_in_order_and_every_image_is_counted_once(jobs: int) -> None:
    task = Counting()
    assert list(in_processes(square, [90, 3, 50, 1, 0, 20], jobs, task)) == [8100, 9, 2500, 1, 0, 400]
    assert task.done == 164


@pytest.mark.parametrize("jobs", [1, 2])
def test_few_items_are_drawn_ahead_of_the_finished(jobs: int) -> None:
    drawn = 0

    def items() -> Iterator[int]:
        nonlocal drawn
        for number in range(1, 31):
            drawn = number
            yield 0

    ahead = [drawn - got for got, _ in enumerate(in_processes(square, items(), jobs, Counting()))]
    assert drawn == len(ahead) == 30
    assert max(ahead) <= 2 * jobs


def test_work_runs_elsewhere_and_without_anything_heavy() -> None:
    with SilentReporter().task("", 4, "") as task:
        found = list(in_processes(process, range(4), 2, task))
    assert os.getpid() not in {pid for pid, _ in found}
    assert len({pid for pid, _ in found}) <= 2
    assert not {"torch", "pyarrow", "scipy", "transformers"} & {name for _, names in found for name in names}


def test_failures_are_counted_over_all_processes() -> None:
    assert sorted(in_processes(count_failures, range(20), 3, Counting())) == list(range(1, 21))


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_ends_the_work(jobs: int) -> None:
    drawn = []
    items = (drawn.append(number) or number for number in range(100))
    with pytest.raises(UserError, match="three"):
        list(in_processes(fail_at_three, items, jobs, Counting()))
    assert len(drawn) < 20


def test_a_process_that_dies_is_an_error_of_one_line() -> None:
    with pytest.raises(UserError, match=r"^jobs=2: a worker process was killed .*; use fewer jobs$"):
        list(in_processes(die_at_three, range(100), 2, Counting()))


def test_work_that_is_left_early_ends_at_its_next_image() -> None:
    with closing(in_processes(for_ever, [0, 1, 1, 1], 2, Counting())) as results:
        assert next(results) == 0  # the others never end by themselves
