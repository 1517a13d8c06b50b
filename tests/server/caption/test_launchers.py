"""The same command under real launchers: two workers share the shards, and the result is one worker's."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.launching import LAUNCHERS
from tests.server.caption.support import Captioned, make_pool, sample


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_workers_write_what_one_writes(launcher, tmp_path: Path):
    pool = make_pool(tmp_path / "shards", [[sample(n) for n in range(4 * s, 4 * s + 4)] for s in range(4)])
    (tmp_path / "c.yaml").write_text(
        f"data: {{dir: {pool.root}}}\ncaption: {{engine: template}}\nout: {tmp_path}/runs\n"
    )
    alone = Captioned(pool, tmp_path / "alone")
    alone.caption()
    done = subprocess.run(
        [sys.executable, *LAUNCHERS[launcher], "caption", str(tmp_path / "c.yaml")],
        capture_output=True, text=True, timeout=200, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    together = tmp_path / "runs" / "c" / "caption"
    for number in range(4):
        assert (together / f"{number:05d}.jsonl").read_bytes() == (alone.folder / f"{number:05d}.jsonl").read_bytes()
    assert (together / "done.json").exists(), "the last worker completes the stage"
