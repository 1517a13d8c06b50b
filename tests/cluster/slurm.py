"""What tests do with a Slurm cluster: look at it, wait, disturb it."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SETTLED = 4.0  # seconds; after KillWait (2) Slurm kills what bears the number of a job that lost its node
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "COMPLETED", "REQUEUED")


@dataclass(frozen=True)
class Slurm:
    """A running cluster whose files lie in `folder`; Slurm's commands find it by SLURM_CONF."""

    folder: Path
    _requeued: dict[str, float] = field(default_factory=dict)  # when it was first seen waiting, by job

    def run(self, *words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def nodes(self) -> dict[str, str]:
        """State by node."""
        return dict(line.split() for line in self.run("sinfo", "-h", "-N", "-o", "%N %t").splitlines())

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says, of an array its first task."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).splitlines()[0].split()
        return dict(word.partition("=")[::2] for word in words)

    def state(self, number: str) -> str:
        return self.job(number)["JobState"]

    def tasks(self, number: str) -> list[dict[str, str]]:
        """The same for each task of an array."""
        lines = self.run("scontrol", "--oneliner", "show", "job", number).splitlines()
        return [dict(word.partition("=")[::2] for word in line.split()) for line in lines]

    def set_node(self, node: str, state: str) -> None:
        self.run("scontrol", "update", f"NodeName={node}", f"State={state}", "Reason=test")

    def logs(self) -> str:
        """The last lines of the daemons'."""
        paths = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{path.name}\n{path.read_text()[-3000:]}" for path in paths)

    def hurry(self) -> None:
        """Start what was requeued soon: Slurm would leave it two minutes for its old processes to go."""
        rows = (
            line.split(maxsplit=1)
            for line in self.run("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i %r").splitlines()
        )
        waiting = {number for number, reason in rows if reason == "BeginTime"}
        for number in set(self._requeued) - waiting:
            del self._requeued[number]
        for number in waiting:
            if time.monotonic() - self._requeued.setdefault(number, time.monotonic()) > SETTLED:
                self.run("scontrol", "update", f"JobId={number}", "StartTime=now")

    def until(self, holds: Callable[[], object], what: str, job: str = "", seconds: float = 240) -> None:
        """Wait until `holds`, hurrying requeued jobs on; in vain, when `job` fails."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"{what}: it did not come to pass\n{self.run('squeue')}\n{self.logs()}"
            assert not job or self.state(job) in ALIVE, f"{what}: job {job} is {self.state(job)}\n{self.logs()}"
            self.hurry()
            time.sleep(0.1)
