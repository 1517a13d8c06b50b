"""Stage 2, whole: data, engine, rounds, evaluation, checkpoints; resumes after the last saved round."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.torch import load_file
from torch import Tensor, nn

from fedscale import checkpoints, files
from fedscale.config.schema import Config
from fedscale.data.manifest import Manifest
from fedscale.device import pick_device
from fedscale.distributed.mesh import Mesh, open_mesh, rows_of
from fedscale.errors import Stopped, UserError
from fedscale.evaluation import Evaluation, evaluate
from fedscale.federated.backends import OutOfMemory
from fedscale.federated.checkpoint import newest_round, restore, save_round
from fedscale.federated.cost import image_flops, round_cost
from fedscale.federated.engine import Engine, RoundResult
from fedscale.federated.inputs import Inputs, open_inputs
from fedscale.federated.metrics import MetricsLog
from fedscale.federated.setup import build_engine, open_round_data, pinned_arithmetic
from fedscale.models import initial_model, save_tensors
from fedscale.progress import Reporter, SilentReporter, Task
from fedscale.runs import RunFolder
from fedscale.session import Session


class AfterRound(Protocol):
    """What the server does with the global model between two rounds. Every rank calls every method."""

    def prepare(self, manifest: Manifest, mesh: Mesh, session: Session) -> None:
        """Make ready what it needs, before the first round."""

    def due(self, number: int) -> bool:
        """Whether it does anything after round `number`."""

    def align(self, number: int, state: dict[str, Tensor], mesh: Mesh, session: Session) -> None:
        """Change the model's state in place on the main rank, as a function of state and round alone."""


def run(
    config: Config, run: RunFolder, session: Session, after_round: AfterRound | None = None
) -> dict[str, Any] | None:
    """Federate for `federate.rounds` rounds and write `federate/model.safetensors` and `evaluation.json`.

    No rounds leave the starting model as it is: what the server's own training is worth, without any client.

    As one of the launched ranks; all but the main one are silent and return None. `after_round` may change the global
    model between rounds, which evaluation, checkpoints and the next round's clients then see. Raises UserError when the
    pretrained weights it should start from are missing, or when every client diverged; Stopped after a signal, with the
    last finished round saved; RankLost when another rank is gone.
    """
    device, settings = pick_device(config), config.federate
    with (
        pinned_arithmetic(config, device),
        open_mesh(device, settings.shard, settings.timeout, session.reporter.say) as mesh,
    ):
        reporter: Reporter = session.reporter if mesh.is_main else SilentReporter()
        folder = run.stage("federate")
        inputs = open_inputs(config, folder, mesh, Session(reporter, session.stop))
        manifest, train, partition = inputs.manifest, inputs.train, inputs.partition
        if after_round:  # before memory is shared out among lanes: teachers take some for a while
            after_round.prepare(manifest, mesh, Session(reporter, session.stop))
        model = starting_model(config, manifest, run)
        counters = {name: b.clone() for name, b in model.named_buffers() if not b.is_floating_point()}
        data = open_round_data(config, train, mesh.device, reporter.say)
        pool, teacher = inputs.for_method(config, data, mesh, Session(reporter, session.stop))
        shapes = copy.deepcopy(model).to("meta")
        engine = build_engine(config, model, data, partition.clients, mesh, folder, reporter.say, pool, teacher)
        engine.interrupted = lambda: session.stop_requested
        stage = _Stage(config, engine, counters, inputs, folder, session, reporter, after_round)
        try:
            summary = stage.carry_out()
        finally:
            data.close()
            if engine.states:
                engine.states.close()
        if not mesh.is_main:
            return None
        held = [len(rows) for rows in partition.clients]
        # Counted at the end, of shapes alone: what counts takes longer to import than a small run's first round.
        flops = image_flops(shapes, config.data.image_size)
        cost = round_cost(engine.host.whole_layout, engine.method, settings, held, flops)
        return {**summary, "partition": partition.note, "cost": asdict(cost)}


def starting_model(config: Config, manifest: Manifest, run: RunFolder) -> nn.Module:
    """The model that round 1 starts from: the pretrained f, or the seed's own initial weights."""
    model = initial_model(config, len(manifest.class_names))
    if config.pretrain.enabled:
        path = run.stage("pretrain") / "export" / "model.safetensors"
        if not path.exists():
            raise UserError(f"{path}: no such file; run `fedscale pretrain` first, or set pretrain.enabled=false")
        model.load_state_dict(load_file(path))
    return model


class _Stage:
    """The rounds of one run, with what they report and save."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        counters: dict[str, Tensor],
        inputs: Inputs,
        folder: Path,
        session: Session,
        reporter: Reporter,
        after_round: AfterRound | None,
    ) -> None:
        self.after_round = after_round
        self.config, self.engine, self.counters, self.judged = config, engine, counters, inputs.judged
        self.folder, self.session, self.reporter = folder, session, reporter
        self.class_names, self.counts = inputs.manifest.class_names, inputs.class_counts
        self.labels = np.asarray(inputs.train.labels)
        self.diverged: list[str] = []
        self.clients = self.steps = 0
        self.seconds = 0.0

    def carry_out(self) -> dict[str, Any]:
        """All rounds from the last saved one on, and the final files."""
        settings, engine, rounds = self.config.federate, self.engine, self.config.federate.rounds
        finished = self._resume()
        if not finished:
            engine.survey("start", 0)
        if not rounds:
            engine.survey("end", 0)
        log = MetricsLog(self.folder, finished, settings.tensorboard, engine.mesh.is_main)
        for row in log.begun_with:
            self._name(row["round"], row.get("diverged_clients", ()))
        evaluation: Evaluation | None = None
        with self.reporter.task("federate", rounds, "rounds") as task:
            task.advance(finished)
            for number in range(finished + 1, rounds + 1):
                result = self._round(number)
                if self.after_round and self.after_round.due(number):
                    self._change(number, self.after_round)
                if number == rounds:
                    engine.survey("end", number)
                due = number % self.config.eval.every == 0 or number == rounds
                if due:
                    evaluation = self.evaluate()
                log.write(self._row(number, result, evaluation if due else None))
                stopping = engine.mesh.any(self.session.stop_requested)
                if number % settings.checkpoint_every == 0 or number == rounds or stopping:
                    save_round(self.folder, number, engine)
                self._show(task, result, evaluation)
                if stopping and number < rounds:
                    raise Stopped(f"federate: stopped after round {number} of {rounds}")
        log.close()
        return self._close(evaluation or self.evaluate())

    def _round(self, number: int) -> RoundResult:
        try:
            result = self.engine.round(number)
        except OutOfMemory as error:
            raise UserError(f"{error}; {self._saved_before(number)}") from None
        if result is None:
            raise Stopped(f"federate: stopped in round {number}; {self._saved_before(number)}")
        self._name(number, result.diverged)
        self.clients += result.clients
        self.steps += result.steps
        self.seconds += result.seconds
        return result

    def _name(self, number: int, diverged: Iterable[int]) -> None:
        self.diverged += [f"client {client} in round {number}" for client in diverged]

    def _change(self, number: int, after_round: AfterRound) -> None:
        """Let `after_round` change the global model, and give every rank what the main one made of it."""
        engine, host, mesh = self.engine, self.engine.host, self.engine.mesh
        whole = host.whole_of(engine.server.vector).clone()
        counters = {name: counter.clone() for name, counter in self.counters.items()}
        state = counters | host.whole_layout.views(whole)  # complete, and of this the views alone come back
        try:
            after_round.align(number, state, mesh, self.session)
        except Stopped:
            rounds, saved = self.config.federate.rounds, self._saved()
            raise Stopped(f"federate: stopped in what follows round {number}; {saved} of {rounds} are saved") from None
        engine.server.vector = host.slice_of(mesh.broadcast_object(whole.cpu())).to(engine.server.vector)

    def _saved_before(self, number: int) -> str:
        """Save what round `number` began with, unless it is; how far that is, in words."""
        if self._saved() < number - 1:
            save_round(self.folder, number - 1, self.engine)
        return f"{number - 1} of {self.config.federate.rounds} are saved"

    def _saved(self) -> int:
        found = checkpoints.newest(self.folder, "round")
        return found[0] if found else 0

    def _resume(self) -> int:
        """The last saved round, which the engine goes on from; 0 when there is none."""
        found = newest_round(self.folder, self.engine.host.whole_layout.describe())
        if found is None:
            return 0
        number, vectors = found
        restore(self.engine, vectors)
        self.reporter.say(f"federate: resuming after round {number} of {self.config.federate.rounds}")
        return number

    def evaluate(self) -> Evaluation:
        """The global model on every image of the split, each rank on its part."""
        engine, mesh = self.engine, self.engine.mesh
        engine.central.load_judged()
        part = rows_of(len(self.judged.labels), mesh.client_index, mesh.clients)
        return evaluate(
            engine.host.model, self.judged, self.class_names, self.counts, self.config, part, mesh.sum_over_clients
        )

    def _row(self, number: int, result: RoundResult, evaluation: Evaluation | None) -> dict[str, Any]:
        return {
            "round": number,
            **({} if result.loss is None else {"loss": result.loss}),
            "diverged": len(result.diverged),
            **({"diverged_clients": result.diverged} if result.diverged else {}),
            **(evaluation.scores() if evaluation else {}),
            "clients_per_second": result.clients / result.seconds,
            "imbalance": result.imbalance,
            "seconds": result.seconds,
        }

    def _show(self, task: Task, result: RoundResult, evaluation: Evaluation | None) -> None:
        accuracy = f"all {evaluation.all:.1f}, " if evaluation else ""
        task.advance(note=f"{accuracy}{result.clients / result.seconds:,.1f} clients/s")

    def _close(self, evaluation: Evaluation) -> dict[str, Any]:
        host, whole = self.engine.host, self.engine.judged()
        if self.engine.mesh.is_main:
            save_tensors(self.counters | host.whole_layout.views(whole), self.folder / "model.safetensors")
            clients = self.engine.clients[: self.config.data.partition.clients]  # the pool, which may follow, is none
            judged = evaluation.over_clients(self.labels, clients)
            files.write_json(self.folder / "evaluation.json", judged.to_dict())
        if self.diverged:
            named = ", ".join(self.diverged[:5])
            self.reporter.say(f"federate: {len(self.diverged)} diverged client(s) left out of the mean: {named}")
        if self.seconds:
            self.reporter.say(
                f"federate: {self.clients / self.seconds:,.1f} clients/s, "
                f"{self.steps / self.seconds:,.0f} client steps/s"
            )
        return {"rounds": self.config.federate.rounds, **evaluation.scores(), "diverged": self.diverged}
