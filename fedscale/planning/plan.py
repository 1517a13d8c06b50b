"""The whole: a config's stages on a cluster, each stage folder of its child runs once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedscale import files
from fedscale.config.methods import needs_clip
from fedscale.config.schema import Config
from fedscale.planning.align import align_work
from fedscale.planning.caption import caption_work, captioned
from fedscale.planning.cluster import Cluster
from fedscale.planning.collectives import strategy_of
from fedscale.planning.counts import Counts, counts_of
from fedscale.planning.federate import evaluation_work, evaluations, federate_work
from fedscale.planning.predict import Prediction, predict
from fedscale.planning.pretrain import pretrain_work
from fedscale.planning.rates import Rates
from fedscale.planning.shapes import student_of
from fedscale.planning.teachers import clip_of, language_of, mllm_of
from fedscale.planning.work import StageWork, Work
from fedscale.runs import stage_inputs
from fedscale.stages import children, needed

ORDER = ("caption", "pretrain", "federate", "evaluation of federate", "align", "evaluation of align")
WITH_MODEL = ("hf", "vllm")


@dataclass(frozen=True)
class Row:
    """A stage of `runs` child runs that come to the same, one after another."""

    stage: str
    runs: int
    prediction: Prediction
    variants: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Rows by stage; seconds of all of them one after another, on the whole cluster."""

    config: Config
    cluster: Cluster
    counts: Counts
    rates: Rates
    rows: tuple[Row, ...]

    @property
    def seconds(self) -> float | None:
        """None where a stage's time is somebody else's."""
        if not all(row.prediction.stage.predictable for row in self.rows):
            return None
        return sum(row.runs * row.prediction.seconds for row in self.rows)


def plan(
    config: Config, cluster: Cluster, rates: Rates, images: int = 0, pool: int = 0, answer_tokens: int = 0
) -> Plan:
    """Predict every stage of every variant and seed. Raises UserError where numbers or shapes are not to be had."""
    counts = counts_of(config, images, pool)
    seen: dict[tuple[str, str], list[tuple[str, StageWork, int]]] = {}
    for child in children(config):
        wanted = needed(child)
        open_stages = [s for s in wanted if (s, files.fingerprint(stage_inputs(child, s))) not in seen]
        works = stage_works(child, cluster, counts, open_stages, answer_tokens)
        for stage in wanted:
            key = stage, files.fingerprint(stage_inputs(child, stage))
            if key in seen:
                continue
            parts = [(stage, works[stage], child.pretrain.workers if stage == "pretrain" else int(stage == "caption"))]
            beside = works.get(f"evaluation of {stage}")
            seen[key] = [(child.variant, *parts[0][1:])] + ([(child.variant, beside, 0)] if beside else [])
    return Plan(config, cluster, counts, rates, _rows(seen, cluster, rates))


def stage_works(
    config: Config, cluster: Cluster, counts: Counts, stages: Sequence[str], answer_tokens: int = 0
) -> dict[str, StageWork]:
    """The work of these stages of one run, and as `evaluation of STAGE` that of judging models within it."""
    found: dict[str, StageWork] = {}
    answers = answer_tokens or config.caption.max_new_tokens
    student, strategy = student_of(config, counts.classes), strategy_of(config)
    images = captioned(config, counts)
    if "caption" in stages:
        mllm = mllm_of(config) if config.caption.engine in WITH_MODEL else None
        clip = clip_of(config) if config.caption.features.enabled else None
        found["caption"] = caption_work(config, counts, cluster, mllm, clip, answers)
    if "pretrain" in stages:
        learns = config.pretrain.objective == "distillation"
        clip, language = (clip_of(config), language_of(config)) if learns else (None, None)
        found["pretrain"] = pretrain_work(config, counts, student, cluster, strategy, images, clip, language, answers)
    if "federate" in stages:
        work = federate_work(config, counts, student, cluster)
        if needs_clip(config.federate.method):
            work.work += clip_of(config).image.once(counts.train, "fp32")
        if config.align.between_rounds:
            _align_between(config, counts, cluster, work)
        found["federate"] = work
        times = evaluations(config)
        found["evaluation of federate"] = evaluation_work(config, counts, student, cluster, "federate", times)
    if "align" in stages:
        found["align"] = _aligned(config, counts, cluster)
        found["evaluation of align"] = evaluation_work(config, counts, student, cluster, "align", 2)
    return found


def _aligned(config: Config, counts: Counts, cluster: Cluster) -> StageWork:
    taught = config.align.taught
    clip = clip_of(config) if taught and config.align.teacher == "clip" else None
    mllm = mllm_of(config) if taught and config.align.teacher == "mllm" else None
    student = student_of(config, counts.classes)
    return align_work(config, counts, student, cluster, strategy_of(config), clip, mllm)


def _align_between(config: Config, counts: Counts, cluster: Cluster, federate: StageWork) -> None:
    """The main rank's alignments between rounds, while the others wait."""
    alone = _aligned(config, counts, Cluster(cluster.node))
    times = max(0, (config.federate.rounds - 1) // config.align.every)
    federate.work += Work({k: v for k, v in alone.work.amounts.items() if k != "start"}) * times
    federate.notes.append(f"{times} alignments between rounds, by one rank while the others wait")


def _rows(
    seen: dict[tuple[str, str], list[tuple[str, StageWork, int]]], cluster: Cluster, rates: Rates
) -> tuple[Row, ...]:
    rows: list[Row] = []
    for parts in seen.values():
        for variant, work, workers in parts:
            seconds, basis = rates.of(work.rated_as or work.stage, cluster.node)
            made = predict(work, cluster.node, seconds, basis, workers)
            same = next((i for i, row in enumerate(rows) if row.prediction == made), None)
            if same is None:
                rows.append(Row(work.stage, 1, made, (variant,) if variant else ()))
            else:
                row = rows[same]
                rows[same] = Row(row.stage, row.runs + 1, made, row.variants + ((variant,) if variant else ()))
    return tuple(sorted(rows, key=lambda row: ORDER.index(row.stage)))
