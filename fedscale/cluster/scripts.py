"""The script of each stage: what its template's words stand for."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from fedscale import house
from fedscale.cluster.render import directive, node_folder, render
from fedscale.cluster.request import Request
from fedscale.config import Config
from fedscale.data.build import shard_folder

DDP = "launch/accelerate/ddp.yaml"
TOGETHER = ("pretrain", "federate", "align")  # whose ranks reduce together


@dataclass(frozen=True)
class Scripts:
    """The scripts of one submission, which lie in `folder`; the jobs read the config that is kept in `snapshot`."""

    config: Config
    request: Request
    folder: Path
    snapshot: Path
    record: str  # one line for the logs

    def path(self, stage: str) -> Path:
        return self.folder / f"{stage}.sbatch"

    def stage(self, stage: str) -> str:
        """The script of a stage, or of `prepare`, which comes before them."""
        request, together = self.request, stage in TOGETHER
        tasks = request.node_ranks if request.launcher == "srun" and together else 1
        ranks_a_task = request.node_ranks // tasks if together else 1
        cores = self._cores(stage) * (request.node_ranks if stage == "prepare" else ranks_a_task)
        words = {
            "NAME": directive(re.sub(r"[^\w.+-]+", "-", f"{self.config.name}-{stage}"), "name"),
            "FOLDER": directive(str(Path.cwd()), "the current folder"),
            "LOG": self._log(stage),
            "NODES": str(request.nodes if together else 1),
            "TASKS": str(tasks),
            "CPUS": str(cores),
            "ARRAY": self._array(),
            "THREADS": str(self.config.threads or 1),
            "RECORD": shlex.quote(self.record),
            "PYTHON": shlex.join(self._python()),
            "CONFIG": shlex.quote(str(self.snapshot)),
            "SCRIPTS": shlex.quote(str(self.folder)),
            "WORDS": self._words(),
            "LOCAL": node_folder(request.stage_in),
            "STAGE": stage,
            "RANKS": str(request.node_ranks),
            "RESTARTS": str(request.restarts),
            "STRATEGY": shlex.quote(self._strategy()),
        }
        parts = {
            "parts/launcher.sh": f"parts/{request.launcher}.sh",
            "parts/stage_in.sh": "parts/stage_in.sh" if request.stage_in else None,
        }
        return render(f"{stage}.sbatch", words, parts, self._options(stage))

    def chain(self, stages: list[str]) -> str:
        """The script that submits the stages, each after the one before it."""
        lines = [f"submit {stage} {shlex.quote(str(self.path(stage)))}" for stage in stages]
        return render("pipeline.sbatch", {"SUBMIT": "\n".join(lines)}, {}, [])

    def _log(self, stage: str) -> str:
        number = "%A_%a" if stage == "caption" else "%j"
        return directive(f"{str(self.folder).replace('%', '%%')}/{stage}-{number}.log", "out")

    def _array(self) -> str:
        workers = self.request.array or self.request.nodes * self.request.node_ranks
        return f"0-{workers - 1}" + (f"%{self.request.throttle}" if self.request.throttle else "")

    def _cores(self, stage: str) -> int:
        loaders = self.config.pretrain.workers if stage == "pretrain" else 0
        return self.request.cpus or max(1, self.config.threads) + loaders

    def _gpus(self, stage: str) -> int:
        """GPUs a node. A captioning worker has one, or as many as vLLM spreads the model over."""
        if not self.request.gpus or stage in ("prepare", "report"):
            return 0
        if stage != "caption":
            return self.request.gpus
        engine = self.config.caption.engine
        if engine in ("openai", "template"):
            return 0
        return self.config.caption.vllm.tensor_parallel_size if engine == "vllm" else 1

    def _options(self, stage: str) -> list[str]:
        request = self.request
        given = {"time": request.time, "partition": request.partition, "account": request.account}
        gpus = self._gpus(stage)
        named = [f"--{name}={value}" for name, value in given.items() if value]
        return [*named, *([f"--gpus-per-node={gpus}"] if gpus else []), *request.options]

    def _python(self) -> list[str]:
        if not self.request.container:
            return [sys.executable]
        card = ["--nv"] if self.request.gpus else []
        return ["apptainer", "exec", *card, "--bind", str(Path.cwd()), self.request.container, "python"]

    def _words(self) -> str:
        if not self.request.stage_in:
            return ""
        return f'data.dir="$local_disk"/{shlex.quote(shard_folder(self.config.data).name)}'

    def _strategy(self) -> str:
        """The file for `accelerate launch`: the config's own; beside a DeepSpeed JSON, which the ranks read, DDP's."""
        named = self.config.launch
        return str(house.find(named if named.endswith((".yaml", ".yml")) else DDP, "launch file").resolve())
