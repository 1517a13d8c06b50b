"""Findings of several ranks become one line a check, and the gravest decides the exit code."""

from fedscale.doctor.finding import Finding, Gravity, exit_code, merged, of_error
from fedscale.doctor.shown import lines, summary


def finding(gravity: Gravity = Gravity.FINE, found: str = "well", check: str = "disk", **more: object) -> Finding:
    return Finding(check, gravity, found, **more)


def test_notes_are_no_failure_what_is_broken_is_1_and_a_mistake_2() -> None:
    assert exit_code([]) == exit_code([finding(), finding(Gravity.NOTE), finding(Gravity.UNCHECKED)]) == 0
    assert exit_code([finding(), finding(Gravity.MISTAKE)]) == 2
    assert exit_code([finding(Gravity.MISTAKE), finding(Gravity.BROKEN)]) == 1


def test_what_all_ranks_find_is_said_once_and_what_differs_says_whose_it_is() -> None:
    same = [finding(rank=rank, host=f"node{rank}") for rank in range(3)]
    assert [one.found for one in merged(same)] == ["well"]
    worst = finding(Gravity.BROKEN, "full", rank=1, host="node1", remedy="free some")
    (one,) = merged([same[0], worst, same[2]])
    assert one.gravity == Gravity.BROKEN and one.remedy == "free some"
    assert one.found == "full (rank 1, host node1: the worst of 3 on 3 host(s))"


def test_of_equally_grave_findings_the_slowest_host_is_shown() -> None:
    speeds = {"quick": 900.0, "slow": 30.0, "middling": 200.0}
    found = [finding(found=f"{rate}", host=host, worse=1 / rate) for host, rate in speeds.items()]
    assert merged(found)[0].host == "slow"


def test_the_remedy_of_an_error_is_what_stands_behind_its_last_semicolon() -> None:
    parted = of_error("data", "data.source=x: no such folder; or a file; give another")
    assert (parted.found, parted.remedy) == ("data.source=x: no such folder; or a file", "give another")
    assert (of_error("data", "nothing").found, of_error("data", "nothing").remedy) == ("nothing", "")


def test_each_line_has_its_mark_and_its_remedy() -> None:
    found = [finding(), finding(Gravity.BROKEN, "full", "run folder", remedy="free some")]
    assert lines(found) == ["✓  disk        well", "✗  run folder  full → free some"]
    assert summary(found) == "2 checks: 1 broken" and summary(found[:1]) == "1 checks: all fine"
