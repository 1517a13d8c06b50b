"""Who captions what: slices of an agreed list, or leases; nothing is left to nobody."""

import pytest

from fedscale.data.manifest import ShardInfo
from fedscale.distributed.launch import Worker
from fedscale.lease import Leases
from fedscale.server.caption import work

SHARDS = [ShardInfo(f"pool/{n:05d}.tar", 1, 1, "", {}) for n in range(10)]


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("launch", ["slurm-1", None])
def test_all_workers_together_take_every_pending_shard_once(tmp_path, world, launch):
    pending = [SHARDS[n] for n in (0, 2, 3, 7, 9)]
    shares = [work.by_rank(tmp_path, SHARDS, pending, Worker(rank, world, launch)) for rank in range(world)]
    assert sorted(shard.file for share in shares for shard in share) == [shard.file for shard in pending]


@pytest.mark.parametrize("launch", ["slurm-1", None])
def test_a_worker_that_starts_late_leaves_no_shard_to_nobody(tmp_path, launch):
    early = work.by_rank(tmp_path, SHARDS, SHARDS, Worker(0, 2, launch))
    pending = [shard for shard in SHARDS if shard not in early[:3]]  # three are done when the second worker looks
    late = work.by_rank(tmp_path, SHARDS, pending, Worker(1, 2, launch))
    assert {shard.file for shard in [*early, *late]} == {shard.file for shard in SHARDS}


def test_pending_is_shared_evenly_where_the_launch_has_a_name(tmp_path):
    pending = SHARDS[1::2]  # all of them would be rank 1's in a slice of all shards
    shares = [work.by_rank(tmp_path, SHARDS, pending, Worker(rank, 2, "slurm-4")) for rank in range(2)]
    assert [len(share) for share in shares] == [3, 2]


def test_leases_are_exclusive_and_end_with_their_block(tmp_path):
    one, two = Leases(tmp_path, 5), Leases(tmp_path, 5)
    lease = one.claim("00000")
    assert lease is not None and two.claim("00000") is None
    with lease:
        assert lease.held() and set(one.owners(["00000.lease"])) == {"00000"}
    again = two.claim("00000")
    assert again is not None
    with again:
        assert not lease.held()


def test_a_lease_that_beats_is_left_alone_and_a_dead_one_is_taken_over(tmp_path):
    alive, watcher = Leases(tmp_path, 0.02), Leases(tmp_path, 0.02)
    dead = Leases(tmp_path, 1000)  # its next beat comes too late, as if its worker were frozen
    frozen = dead.claim("00001")
    with alive.claim("00000"):
        assert watcher.revive(["00000", "00001"]) == ["00001"]
        assert watcher.claim("00000") is None
    taken = watcher.claim("00001")
    assert taken is not None and not frozen.held()
    with taken:
        frozen.__exit__(None, None, None)
        assert taken.held(), "the frozen worker wakes up and does not delete what is no longer its own"


def test_every_shard_is_claimed_by_one_of_two_workers(tmp_path):
    done: set[str] = set()

    def is_open(shard):
        return shard.file not in done

    workers = [work.by_lease(Leases(tmp_path, 0.05), SHARDS, Worker(rank, 2), is_open) for rank in range(2)]
    taken = []
    while workers:
        for claims in list(workers):
            claim = next(claims, None)
            if claim is None:
                workers.remove(claims)
                continue
            shard, lease = claim
            with lease:
                if shard.file not in done:  # as the stage looks again once it holds the lease
                    taken.append(shard.file)
                    done.add(shard.file)
    assert sorted(taken) == [shard.file for shard in SHARDS]


def test_what_launches_leave_behind_is_tidied_away(tmp_path):
    work.by_rank(tmp_path, SHARDS, SHARDS, Worker(0, 2, "slurm-1"))
    for name in ("00003", "00004"):
        Leases(tmp_path, 1000).claim(name)
    assert len(list(tmp_path.iterdir())) == 3
    work.tidy(tmp_path, done={"00003"})
    assert [path.name for path in tmp_path.iterdir()] == ["00004.lease"], "that of a shard in work may be alive"


def test_a_lease_being_created_is_not_taken_for_a_dead_one_at_once(tmp_path):
    (tmp_path / "00000.lease").write_text("")  # created, its owner not yet written
    assert Leases(tmp_path, 0.01).claim("00000") is None
    assert Leases(tmp_path, 0.01).revive(["00000"]) == ["00000"], "nor is it for ever, should its worker have died"
