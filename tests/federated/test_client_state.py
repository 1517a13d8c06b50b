"""Clients' rows are bitwise what was committed: after other rounds, crashes, full disks, with more or fewer ranks."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fedscale import checkpoints, files
from fedscale.errors import UserError
from fedscale.federated.client_state import ClientStates, next_launch

ROLES, CLIENTS, SIZE, COHORT = ["control", "personal"], 12, 37, 5

Rows = dict[tuple[int, str], torch.Tensor]


def opened(folder: Path, rank: int = 0, launch: int = 1, table: dict[str, Any] | None = None) -> ClientStates:
    return ClientStates(folder, ROLES, CLIENTS, SIZE, torch.float32, launch, rank, table)


def launched(folder: Path, ranks: int, table: dict[str, Any] | None = None) -> list[ClientStates]:
    launch = next_launch(folder)
    return [opened(folder, rank, launch, table) for rank in range(ranks)]


def cohort(number: int) -> list[int]:
    return random.Random(number).sample(range(CLIENTS), COHORT)


def renewed(old: torch.Tensor, client: int, role: str, number: int) -> torch.Tensor:
    """A row that depends on the one before it, so that one wrong row spoils all that follow."""
    noise = torch.Generator().manual_seed(1000 * number + 10 * client + ROLES.index(role))
    return 0.5 * old + torch.randn(SIZE, generator=noise)


def reference(rounds: int) -> Rows:
    rows = {(client, role): torch.zeros(SIZE) for client in range(CLIENTS) for role in ROLES}
    for number in range(1, rounds + 1):
        for client in cohort(number):
            for role in ROLES:
                rows[client, role] = renewed(rows[client, role], client, role, number)
    return rows


def train(ranks: Sequence[ClientStates], number: int) -> None:
    """One round, up to the commit."""
    clients, row = cohort(number), torch.empty(SIZE)
    for index, rank in enumerate(ranks):
        mine = clients[index :: len(ranks)]
        rank.prefetch(mine)
        for client in mine:
            for role in ROLES:
                rank.read(client, role, row)
                rank.write(client, role, renewed(row, client, role, number))
    entries = json.loads(json.dumps([entry for rank in ranks for entry in rank.pending()]))
    for rank in ranks:
        rank.commit(entries)


def save(ranks: Sequence[ClientStates], run: Path, number: int) -> None:
    """A round's checkpoint, as the rounds' loop makes it."""
    for rank in ranks:
        rank.flush()
    tables = [rank.checkpoint() for rank in ranks]
    assert all(table == tables[0] for table in tables)
    with checkpoints.checkpoint(run, "round", number) as temporary:
        files.write_json(temporary / "clients.json", tables[0])
    keep(ranks, run)


def keep(ranks: Sequence[ClientStates], run: Path) -> None:
    kept = [files.read_json(path) for path in run.glob("round_*/clients.json")]
    for rank in ranks:
        rank.kept(kept)
    ranks[0].collect_garbage()


def resumed(run: Path, ranks: int) -> tuple[int, list[ClientStates]]:
    number, folder = checkpoints.newest(run, "round") or (0, None)
    states = launched(run / "clients", ranks, files.read_json(folder / "clients.json") if folder else None)
    keep(states, run)
    return number, states


def rows_of(states: ClientStates) -> Rows:
    rows = {(client, role): torch.full((SIZE,), torch.nan) for client in range(CLIENTS) for role in ROLES}
    for (client, role), row in rows.items():
        states.read(client, role, row)
    return rows


def assert_rows(states: ClientStates, expected: Rows) -> None:
    found = rows_of(states)
    wrong = [key for key, row in expected.items() if not torch.equal(found[key], row)]
    assert not wrong, wrong


@pytest.fixture
def states(tmp_path: Path) -> Iterator[ClientStates]:
    states = opened(tmp_path)
    yield states
    states.close()


def test_a_row_is_zeros_first_and_then_what_was_committed(states: ClientStates) -> None:
    row = torch.full((SIZE,), torch.nan)
    states.read(3, "control", row)
    assert torch.equal(row, torch.zeros(SIZE))
    states.write(3, "control", torch.arange(SIZE, dtype=torch.float32))
    states.read(3, "control", row)
    assert torch.equal(row, torch.zeros(SIZE))  # pending: this round's clients see the round's start
    states.commit(states.pending())
    states.read(3, "control", row)
    assert torch.equal(row, torch.arange(SIZE, dtype=torch.float32))
    assert_rows(states, {(3, "personal"): torch.zeros(SIZE), (4, "control"): torch.zeros(SIZE)})


def test_what_is_written_twice_in_a_round_is_the_second(states: ClientStates) -> None:
    states.write(3, "control", torch.ones(SIZE))
    states.write(3, "control", torch.full((SIZE,), 2.0))
    assert len(states.pending()) == 1
    states.commit(states.pending())
    assert_rows(states, {(3, "control"): torch.full((SIZE,), 2.0)})


def test_a_discarded_round_leaves_no_trace(states: ClientStates) -> None:
    train([states], 1)
    states.write(cohort(1)[0], "control", torch.ones(SIZE))
    states.discard()
    assert states.pending() == []
    assert_rows(states, reference(1))
    train([states], 2)
    assert_rows(states, reference(2))


def test_rows_of_bfloat16_take_half_and_come_back_rounded(tmp_path: Path) -> None:
    states = ClientStates(tmp_path, ["control"], 1, SIZE, torch.bfloat16, 1, 0)
    row, out = torch.randn(SIZE), torch.empty(SIZE)
    states.write(0, "control", row)
    states.commit(states.pending())
    states.read(0, "control", out)
    assert torch.equal(out, row.bfloat16().float())
    assert states.expected_bytes(0) == 2 * SIZE
    states.close()


def assert_checkpoint(folder: Path, table: dict[str, Any], expected: Rows) -> None:
    (reader,) = launched(folder, 1, table)
    assert_rows(reader, expected)
    reader.close()


def test_each_kept_checkpoint_is_bitwise_its_round_whatever_came_after(tmp_path: Path) -> None:
    ranks = launched(tmp_path / "clients", 2)
    for number in range(1, 21):
        train(ranks, number)
        if number % 3 == 0:
            save(ranks, tmp_path, number)
        for path in tmp_path.glob("round_*"):
            kept = int(path.name.removeprefix("round_"))
            assert_checkpoint(tmp_path / "clients", files.read_json(path / "clients.json"), reference(kept))
    for kept in (15, 18):
        again = launched(tmp_path / "clients", 2, files.read_json(tmp_path / f"round_{kept}" / "clients.json"))
        for number in range(kept + 1, 21):
            train(again, number)
        assert_rows(again[1], reference(20))


def test_a_table_is_kept_from_when_it_was_taken_until_others_are(states: ClientStates) -> None:
    train([states], 1)
    table, rows = states.checkpoint(), reference(1)
    for number in range(2, 8):
        train([states], number)
    assert_checkpoint(states.folder, table, rows)

    (later,) = launched(states.folder, 1, table)
    for client in range(CLIENTS):
        for role in ROLES:
            later.write(client, role, torch.ones(SIZE))
    later.commit(later.pending())
    later.collect_garbage()
    assert_checkpoint(states.folder, table, rows)
    later.kept([later.checkpoint()])
    later.collect_garbage()
    with pytest.raises(UserError, match="missing or too short"):
        launched(states.folder, 1, table)


def test_freeing_slots_in_the_middle_of_a_round_leaves_what_it_wrote(states: ClientStates) -> None:
    states.write(1, "control", torch.ones(SIZE))
    states.kept([])
    states.write(2, "control", torch.full((SIZE,), 2.0))
    states.commit(states.pending())
    assert_rows(states, {(1, "control"): torch.ones(SIZE), (2, "control"): torch.full((SIZE,), 2.0)})


def test_the_store_stays_within_the_size_that_it_announced(tmp_path: Path) -> None:
    ranks = launched(tmp_path / "clients", 1)
    sizes = []
    for number in range(1, 201):
        train(ranks, number)
        if number % 2 == 0:
            save(ranks, tmp_path, number)
        sizes.append((tmp_path / "clients" / "1-0.rows").stat().st_size)
    assert sizes[-1] == sizes[20]
    versions = CLIENTS + 10 + 5 + 5  # newest, two rounds' rows in the older checkpoint, one in the newer, one pending
    assert ranks[0].expected_bytes(COHORT, every=2) == versions * len(ROLES) * SIZE * 4
    assert sizes[-1] <= 2 * ranks[0].expected_bytes(COHORT, every=2)  # a small slab grows by doubling
    assert_rows(ranks[0], reference(200))


def test_an_older_slab_takes_the_disk_space_of_the_rows_that_are_still_used(tmp_path: Path) -> None:
    def opened(launch: int, table: dict[str, Any] | None = None) -> ClientStates:
        return ClientStates(tmp_path, ["control"], CLIENTS, 4096, torch.float32, launch, 0, table)

    def write(states: ClientStates, clients: Sequence[int], value: float) -> None:
        for client in clients:
            states.write(client, "control", torch.full((4096,), value))
        states.commit(states.pending())

    older, row_bytes = opened(1), 4 * 4096
    write(older, range(CLIENTS), 1.0)
    states = opened(2, older.checkpoint())
    write(states, [*range(4), *range(6, CLIENTS)], 2.0)
    states.collect_garbage()
    assert (tmp_path / "1-0.rows").stat().st_blocks * 512 >= CLIENTS * row_bytes  # the table it opened at is kept
    states.kept([states.checkpoint()])
    states.collect_garbage()
    assert (tmp_path / "1-0.rows").stat().st_blocks * 512 <= 3 * row_bytes
    found = torch.empty(4096)
    for client in range(CLIENTS):
        states.read(client, "control", found)
        assert torch.equal(found, torch.full((4096,), 1.0 if client in (4, 5) else 2.0))


def test_ranks_read_one_anothers_rows_and_agree_on_the_table(tmp_path: Path) -> None:
    ranks = launched(tmp_path, 3)
    for number in range(1, 7):
        train(ranks, number)
    for rank in ranks:
        assert_rows(rank, reference(6))
    assert len({json.dumps(rank.checkpoint()) for rank in ranks}) == 1


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 4)])
def test_another_number_of_ranks_goes_on_with_the_same_rows(tmp_path: Path, before: int, after: int) -> None:
    ranks = launched(tmp_path / "clients", before)
    for number in range(1, 6):
        train(ranks, number)
        save(ranks, tmp_path, number)
    found, ranks = resumed(tmp_path, after)
    assert found == 5
    for number in range(6, 11):
        train(ranks, number)
        save(ranks, tmp_path, number)
    assert_rows(ranks[-1], reference(10))


def test_a_resumed_run_writes_no_older_slab_and_deletes_those_that_nothing_refers_to(tmp_path: Path) -> None:
    ranks = launched(tmp_path / "clients", 1)
    train(ranks, 1)
    save(ranks, tmp_path, 1)
    older = tmp_path / "clients" / "1-0.rows"
    shutil.copy(older, tmp_path / "clients" / "2-7.rows")  # of a launch that did not come to a checkpoint
    content = older.read_bytes()
    _, ranks = resumed(tmp_path, 2)
    assert sorted(path.name for path in older.parent.iterdir()) == ["1-0.rows", "3-0.rows", "3-1.rows"]
    train(ranks, 2)
    save(ranks, tmp_path, 2)
    assert older.read_bytes() == content
    for number in range(3, 60):
        train(ranks, number)
        save(ranks, tmp_path, number)
    assert sorted(path.name for path in older.parent.iterdir()) == ["3-0.rows", "3-1.rows"]
    assert_rows(ranks[1], reference(59))


@pytest.mark.parametrize(
    ("call", "count", "whole"),
    [("pwrite", 1, 0), ("pwrite", 5, 0), ("pwrite", 33, 3), ("pwrite", 87, 8), ("replace", 8, 2), ("replace", 9, 2)],
)
def test_a_kill_in_the_middle_of_a_row_or_a_checkpoint_costs_no_more_than_its_round(
    tmp_path: Path, call: str, count: int, whole: int
) -> None:
    child = multiprocessing.get_context("fork").Process(target=killed, args=(tmp_path, call, count))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    found, ranks = resumed(tmp_path, 3)
    assert found == whole
    assert_rows(ranks[0], reference(found))
    for number in range(found + 1, 13):
        train(ranks, number)
        save(ranks, tmp_path, number)
    assert_rows(ranks[2], reference(12))


def killed(run: Path, call: str, count: int) -> None:
    """Rounds of two ranks up to the `count`-th `os.<call>`, which the process does not survive; a row is half there."""
    real, calls = getattr(os, call), iter(range(1, count + 1))

    def last(*args: Any) -> Any:
        if next(calls) < count:
            return real(*args)
        if call == "pwrite":
            real(args[0], args[1][: len(args[1]) // 2], args[2])
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, call, last)
    ranks = launched(run / "clients", 2)
    for number in range(1, 13):
        train(ranks, number)
        save(ranks, run, number)


def test_a_full_disk_is_one_clear_line_and_the_round_can_be_discarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = launched(tmp_path / "clients", 1)
    train(ranks, 1)
    save(ranks, tmp_path, 1)

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(UserError, match=r"1-0\.rows: cannot be written \(the disk is full"):
            for number in range(2, 20):
                train(ranks, number)
    pending = ranks[0].pending()
    assert len(pending) < COHORT * len(ROLES)
    ranks[0].discard()
    table = ranks[0].checkpoint()
    committed = next(number for number in range(1, 20) if matches(ranks[0], number))
    assert_rows(opened(tmp_path / "clients", launch=9, table=table), reference(committed))
    for number in range(committed + 1, committed + 4):  # somebody has freed some space
        train(ranks, number)
    assert_rows(ranks[0], reference(committed + 3))


def matches(states: ClientStates, rounds: int) -> bool:
    return all(torch.equal(row, reference(rounds)[key]) for key, row in rows_of(states).items())


def test_a_write_that_fails_half_way_leaves_the_row_of_before(
    states: ClientStates, monkeypatch: pytest.MonkeyPatch
) -> None:
    train([states], 1)
    real, calls = os.pwrite, iter(range(9))

    def torn(file: int, data: memoryview, offset: int) -> int:
        if next(calls):
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        return real(file, data[:50], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", torn)
        with pytest.raises(UserError, match="disk quota"):
            states.write(cohort(1)[0], "control", torch.ones(SIZE))
    assert states.pending() == []
    states.commit(states.pending())
    assert_rows(states, reference(1))
    train([states], 2)
    assert_rows(states, reference(2))


def test_too_small_a_disk_is_refused_before_the_run(states: ClientStates, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort_bytes = COHORT * len(ROLES) * SIZE * 4
    usage = shutil.disk_usage("/")._replace(free=cohort_bytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert states.expected_bytes(COHORT) == (CLIENTS + 2 * COHORT) * len(ROLES) * SIZE * 4
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=cohort_bytes - 1))
    with pytest.raises(UserError, match=r"5 clients takes .* free: free some space"):
        states.expected_bytes(COHORT)


def test_what_was_read_ahead_is_what_would_have_been_read(states: ClientStates) -> None:
    for number in range(1, 4):
        train([states], number)
    expected = reference(3)
    states.prefetch(range(CLIENTS))
    assert_rows(states, expected)
    states.prefetch([1, 2])
    states.prefetch([2, 3])
    assert {client for client, _ in states._ahead} <= {2, 3}  # bounded to the next group
    assert_rows(states, expected)


def test_what_was_read_ahead_of_a_commit_is_not_given_after_it(states: ClientStates) -> None:
    train([states], 1)
    gate = threading.Event()
    states._reader.submit(gate.wait)  # holds the reads back until the rows' slots hold something else
    states.prefetch(range(CLIENTS))
    row = torch.empty(SIZE)
    for number in (2, 3, 4):
        for client in cohort(number):
            for role in ROLES:
                expected = reference(number - 1)[client, role]
                states.write(client, role, renewed(expected, client, role, number))
        states.commit(states.pending())
    gate.set()
    states.read(cohort(4)[0], "control", row)
    assert torch.equal(row, reference(4)[cohort(4)[0], "control"])
    assert_rows(states, reference(4))


def test_a_missing_or_cut_slab_is_named(tmp_path: Path) -> None:
    ranks = launched(tmp_path, 2)
    train(ranks, 1)
    table = ranks[0].checkpoint()
    os.truncate(tmp_path / "1-1.rows", SIZE * 4)
    with pytest.raises(UserError, match=r"1-1\.rows: missing or too short \(1 rows, .* row 4\); restore it, or delete"):
        opened(tmp_path, launch=2, table=table)
    (tmp_path / "1-1.rows").unlink()
    with pytest.raises(UserError, match=r"1-1\.rows: missing or too short \(0 rows"):
        opened(tmp_path, launch=2, table=table)


@pytest.mark.parametrize("change", [{"places": "AAAA"}, {"places": ""}, {"places": None}, {"places": "é"}])
def test_a_torn_table_is_refused(states: ClientStates, change: dict[str, Any]) -> None:
    train([states], 1)
    table = states.checkpoint()
    half = table["places"][: len(table["places"]) // 2]
    for torn in (table | change, table | {"places": half}, {key: table[key] for key in table if key != "places"}, {}):
        with pytest.raises(UserError, match=r"table is torn.*delete that checkpoint"):
            opened(states.folder, launch=2, table=torn)


@pytest.mark.parametrize("change", [{"row_size": 38}, {"clients": 13}, {"roles": ["control"]}, {"dtype": "bf16"}])
def test_a_table_of_other_rows_is_refused(states: ClientStates, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"the checkpoint has .* the run"):
        opened(states.folder, launch=2, table=states.checkpoint() | change)


def test_two_launches_at_once_are_found_out(states: ClientStates) -> None:
    with pytest.raises(UserError, match=r"1-0\.rows: another launch"):
        opened(states.folder)


def test_a_hundred_thousand_clients_take_eight_bytes_each(tmp_path: Path) -> None:
    clients = 100_000
    states = ClientStates(tmp_path, ["control"], clients, 1, torch.float32, 1, 0)
    order = random.Random(0).sample(range(clients), clients)
    states.commit([(client, "control", 1 << 16 | 1 + client % 8, slot) for slot, client in enumerate(order)])
    assert states._live.nbytes == 8 * clients
    assert len(json.dumps(states.checkpoint())) < 8 * clients
    states.kept([states.checkpoint()])
    assert [table.nbytes for table in states._kept] == [8 * clients]
    states.close()
