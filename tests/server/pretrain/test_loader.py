"""Loader workers: the same batches for any number of them, clear errors out of them, and no signal loses them."""

import multiprocessing
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

from fedscale.errors import UserError
from tests.server.pretrain.test_data import pool_of, same, steps_of, stream_of

pytestmark = pytest.mark.slow  # each worker begins by importing torch
SIZES = (1, 13, 5, 2, 11, 7)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return pool_of(tmp_path_factory.mktemp("pool"), SIZES)


@pytest.fixture(scope="module")
def alone(pool):
    return steps_of(stream_of(pool), 14)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_do_not_depend_on_the_number_of_workers(pool, alone, workers):
    state = torch.random.get_rng_state()
    start = 0 if workers < 3 else 7  # with a resume
    found = steps_of(stream_of(pool, workers=workers), 7, start=start)
    for one, other in zip(alone[start : start + 7], found, strict=True):
        assert all(same(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not multiprocessing.active_children(), "they end with the iterator"


def test_ranks_with_workers_see_the_same_micro_batches_after_a_resume(pool):
    split = {"start": 5, "rank": 1, "world": 2, "accumulation": 3}
    alone = steps_of(stream_of(pool, accumulation=3), 3, **split)
    found = steps_of(stream_of(pool, accumulation=3, workers=2), 3, **split)
    for one, other in zip(alone, found, strict=True):
        assert len(one) == 3 and all(same(a, b) for a, b in zip(one, other, strict=True))


def test_a_truncated_shard_is_one_clear_line_out_of_a_worker(tmp_path):
    pool = pool_of(tmp_path, (6,) * 4)
    stream = stream_of(pool, workers=1)
    path = pool.manifest.path(pool.manifest.shards("pool")[2])
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"00002.tar: not a whole shard .*copy it again") as caught:
        steps_of(stream, 3)
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()


def test_a_worker_outlives_the_signals_that_ask_the_rank_to_stop_and_its_death_is_told(pool, alone):
    batches = stream_of(pool, workers=1).batches(0, 12)
    first = next(batches)
    (worker,) = multiprocessing.active_children()
    for asked in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker.pid, asked)
    found = [first, *islice(batches, 7)]
    assert all(same(a, b) for one, other in zip(alone, found, strict=False) for a, b in zip(one, other, strict=True))
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"pretrain.workers=1: a worker was killed.*lower pretrain.workers"):
        list(islice(batches, 50))


LEFT_BEHIND = """
import sys
from pathlib import Path
from tests.server.pretrain.test_data import pool_of, stream_of

if __name__ == "__main__":
    batches = stream_of(pool_of(Path(sys.argv[1]), (6, 6, 6, 6)), workers=1).batches(0, 12)
    next(batches)
    raise RuntimeError("a bug while the workers read")
"""


def test_a_rank_that_fails_does_not_hang_on_its_workers(tmp_path):
    script = tmp_path / "left_behind.py"
    script.write_text(LEFT_BEHIND)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert ended.returncode == 1 and "a bug while the workers read" in ended.stderr
