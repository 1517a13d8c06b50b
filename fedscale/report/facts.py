"""The words of the report: what was run, what a reader must know to judge the numbers, and where the configs differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedscale.report.compare import percent
from fedscale.report.records import Collection, Run
from fedscale.report.source import jpeg_note

APART = ("name", "out", "variant", "variants", "seed", "seeds", "jobs", "threads", "device")


def setting(config: dict[str, Any], dotted: str) -> Any:
    """The value at a dotted key, or None where an older or partial config has none."""
    for key in dotted.split("."):
        config = config.get(key) if isinstance(config, dict) else None  # type: ignore[assignment]
    return config


def facts(run: Run) -> list[tuple[str, str]]:
    """Label and value of what was run, for the top of the page."""
    config, evaluation = run.config, run.final
    counts = sorted(evaluation.train_counts, reverse=True)
    partition = setting(config, "data.partition") or {}
    dealt = str(partition.get("kind", ""))
    if dealt.startswith("dirichlet"):
        dealt += f", α {partition.get('alpha')}"
    found = [
        ("Data", f"{setting(config, 'data.name')}, {len(counts)} classes"),
        ("Training images", f"{sum(counts):,} — from {counts[0]:,} down to {counts[-1]:,} a class"),
        ("Clients", f"{partition.get('clients')}, {setting(config, 'federate.clients_per_round')} a round ({dealt})"),
        ("Rounds", f"{setting(config, 'federate.rounds')} of {setting(config, 'federate.local_epochs')} local epochs"),
        ("Model", _model(config)),
        ("Evaluated on", f"{evaluation.split}, {sum(map(sum, evaluation.confusion)):,} images"),
    ]
    return [(label, value) for label, value in found if "None" not in value]


def _model(config: dict[str, Any]) -> str:
    """The model's name, with its width where the model has one (ResNet-8 alone) and that of its projection."""
    name, width = setting(config, "model.name"), setting(config, "model.width")
    projection = setting(config, "model.projection")
    described = f"{name}, width {width}" if name == "resnet8" else str(name)
    return f"{described}, features projected to {projection}" if projection else described


def notes(collection: Collection, shown_by_class: Sequence[Run]) -> list[str]:
    """What a reader must know to judge the numbers; a line each."""
    runs = collection.runs
    lines = [f"Left out: {reason}." for reason in collection.left_out]
    data = {(run.final.class_names, run.final.train_counts, run.final.split) for run in runs}
    if len(data) > 1:
        lines.append("These runs were not trained or evaluated on the same data, so comparing them means little.")
    if len(shown_by_class) < len(runs):
        left = sorted({run.variant for run in runs if run not in shown_by_class})
        lines.append(f"Figures by class leave out runs on other classes: {', '.join(left)}.")
    if any(run.final.split != "test" for run in runs):
        splits = sorted({run.final.split for run in runs})
        lines.append(f"Evaluated on the {' and '.join(splits)} split; publish only figures of the test split.")
    remarks = (_teachers(runs), _captions(runs), _pool(runs), jpeg_note(runs[0].config), _agreement(runs))
    lines += [line for line in remarks if line]
    if len({run.variant for run in runs}) > 1:
        lines.append(
            "A stage that several variants share is run once; its time is counted in each variant that builds on it."
        )
    return list(dict.fromkeys([*lines, *(f"{note[0].upper()}{note[1:]}" for run in runs for note in run.notes)]))


def config_differences(configs: dict[str, dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """The dotted keys whose values differ between the variants, each with its value for every variant."""
    flat = [_flat({key: value for key, value in config.items() if key not in APART}) for config in configs.values()]
    keys = dict.fromkeys(key for config in flat for key in config)
    return [
        (key, [_written(config.get(key, "–")) for config in flat])
        for key in keys
        if len({str(config.get(key)) for config in flat}) > 1
    ]


def _teachers(runs: Sequence[Run]) -> str:
    taught = [run for run in runs if run.captions or run.aligned]
    if any(setting(run.config, "teachers.offline.enabled") for run in taught):
        return (
            "Both teachers, CLIP and the MLLM, were trained offline, from scratch, on the open pool and its crawl "
            "keywords (teachers.offline.enabled); no published weights were used, which would be stronger."
        )
    if any(str(setting(run.config, "teachers.clip.model")).startswith("teachers/shapes") for run in taught):
        return (
            "The teachers are the demo's own: a tiny CLIP and a tiny LLaVA, trained from scratch on captioned shapes "
            "that no client holds."
        )
    return ""


def _captions(runs: Sequence[Run]) -> str:
    if any(run.captions and run.captions.engine == "template" for run in runs):
        return "Captions are templates around the crawl keyword: no language model looked at the images."
    return ""


def _pool(runs: Sequence[Run]) -> str:
    reserve = setting(runs[0].config, "data.open_pool.reserve")
    if not reserve or setting(runs[0].config, "data.open_pool.enabled") is False:
        return ""
    said = f"{reserve:,} images a class were set aside for the open pool before the long tail was cut"
    published = str(setting(runs[0].config, "data.name")).startswith("cifar")
    return f"{said}, so the classes are smaller than in the published protocol." if published else f"{said}."


def _agreement(runs: Sequence[Run]) -> str:
    found = {run.variant: run.agreement for run in runs if run.agreement is not None}
    if not found:
        return ""
    values = sorted(set(found.values()))
    span = percent(values[0]) if len(values) == 1 else f"{percent(values[0])} to {percent(values[-1])}"
    return f"On the alignment set the teacher's class is the crawl's keyword for {span}% of the images."


def _written(value: Any) -> str:
    """A value as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        flat |= _flat(value, dotted) if isinstance(value, dict) else {dotted: value}
    return flat
