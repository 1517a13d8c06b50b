"""A Slurm cluster of two nodes on this machine, from Debian's packages (slurm-wlm, munge)."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm import Slurm
from tests.launching import free_port

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where Debian keeps daemons, which not every user's PATH names

# Each node thinks that it has more cores than there are: two nodes share this machine.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/%n
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=1
JobRequeue=1
KillWait=2
MinJobAge=3600
NodeName=node[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]},{ports[2]}] CPUs=4 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
"""


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    absent = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
    return f"no {', '.join(absent)}: apt-get install slurm-wlm munge" if absent else ""


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """The cluster, its nodes idle. Its files are in a folder of its own, its processes end with the tests."""
    if reason := missing():
        pytest.skip(f"Slurm: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # short, for munge's socket
    before = {name: os.environ.get(name) for name in ("SLURM_CONF", "PATH")}
    try:
        _write(folder)
        os.environ.update(SLURM_CONF=str(folder / "slurm.conf"), PATH=PATH)
        _start(folder)
        cluster = Slurm(folder)
        cluster.until(lambda: cluster.nodes() == {"node1": "idle", "node2": "idle"}, "nodes come up", seconds=60)
        yield cluster
    finally:
        _stop(folder)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path) -> None:
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    (folder / "state").mkdir()
    ports = [free_port() for _ in range(3)]
    host, user = socket.gethostname().split(".")[0], getpass.getuser()
    text = CONFIGURATION.format(folder=folder, host=host, user=user, ports=ports)
    (folder / "slurm.conf").write_text(text)


def _start(folder: Path) -> None:
    munge = [
        "munged", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed",
    ]  # fmt: skip
    for command in (munge, ["slurmctld", "-c"], ["slurmd", "-N", "node1"], ["slurmd", "-N", "node2"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        logs = "".join(path.read_text()[-1000:] for path in sorted(folder.glob("*.log")))
        assert done.returncode == 0, f"{command[0]}: {done.stderr}\n{logs}"


def _stop(folder: Path) -> None:
    """End the jobs, then the daemons, by the numbers that they wrote down."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(["scancel", "--user", getpass.getuser()], capture_output=True, timeout=20)
        end = time.monotonic() + 20
        while (
            time.monotonic() < end and subprocess.run(["squeue", "-h"], capture_output=True, timeout=20).stdout.strip()
        ):
            time.sleep(0.2)
    for name in ("slurmctld", "node1", "node2", "munge"):
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)
    end = time.monotonic() + 20
    while time.monotonic() < end and any((folder / f"{name}.pid").exists() for name in ("slurmctld", "node1", "node2")):
        time.sleep(0.1)
