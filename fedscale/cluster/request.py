"""What `fedscale submit` is asked for, checked."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fedscale.config.checks import require

STAGES = ("caption", "pretrain", "federate", "align", "report", "pipeline")
LAUNCHERS = ("torchrun", "accelerate", "deepspeed", "srun")
WORD = re.compile(r"[^\s\"'\\#]+")  # of a line `#SBATCH`, which no shell reads
VARIABLE = re.compile(r"\$(\w+|\{\w+\})(/.*)?")  # a node's own folder may have a name that the node alone knows


@dataclass(frozen=True)
class Request:
    """Stages on `nodes` nodes with `gpus` GPUs each (0: on their CPUs). 0 and "" leave a choice to us, or to Slurm.

    `ranks` are those of a node, by default its GPUs, or one; `cpus` the cores of a rank, by default its threads and
    its loader's processes. `array` workers caption, by default as many as there are ranks, `throttle` of them at a
    time. `stage_in` is a folder of each node's own, which may begin with a variable: `$TMPDIR/fedscale`. `options` are
    sbatch's own, like `--qos=high`.
    """

    stage: str = "pipeline"
    nodes: int = 1
    gpus: int = 0
    ranks: int = 0
    cpus: int = 0
    time: str = ""
    partition: str = ""
    account: str = ""
    launcher: str = "torchrun"
    restarts: int = 2  # of all ranks by torchrun, after one of them died
    array: int = 0
    throttle: int = 0
    stage_in: str = ""
    container: str = ""
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.stage in STAGES, "--stage", self.stage, f"one of {', '.join(STAGES)}")
        require(self.launcher in LAUNCHERS, "--launcher", self.launcher, f"one of {', '.join(LAUNCHERS)}")
        require(self.nodes >= 1, "--nodes", self.nodes, "1 or more")
        for name in ("gpus", "ranks", "cpus", "restarts", "array", "throttle"):
            require(getattr(self, name) >= 0, f"--{name}", getattr(self, name), "0 or more")
        for name in ("time", "partition", "account"):
            value = getattr(self, name)
            require(not value or bool(WORD.fullmatch(value)), f"--{name}", repr(value), "a word as sbatch takes it")
        for option in self.options:
            fits = option.startswith("--") and bool(WORD.fullmatch(option))
            require(fits, "--sbatch", repr(option), "an option of sbatch in one word, e.g. --qos=high")
        folder = self.stage_in
        fits = not folder or folder.startswith("/") or bool(VARIABLE.fullmatch(folder))
        require(fits, "--stage-in", folder, "an absolute folder, or one like '$TMPDIR/fedscale'")

    @property
    def node_ranks(self) -> int:
        """Ranks of a node."""
        return self.ranks or self.gpus or 1
