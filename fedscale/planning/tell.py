"""A plan for people (tables, then what to know) and for programs."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from fedscale.planning.hardware import SHARES
from fedscale.planning.plan import Plan, Row
from fedscale.planning.rates import MEASURED
from fedscale.planning.work import KINDS, NETWORK

UNITS = (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
COUNTS = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
SPANS = (("years", 365 * 86400), ("days", 86400), ("h", 3600), ("min", 60))


def as_bytes(size: float) -> str:
    """12.3 GB."""
    unit, scale = next((one for one in UNITS if size >= one[1]), ("B", 1))
    return f"{size / scale:,.3g} {unit}" if size < 999 * scale else f"{size / scale:,.0f} {unit}"


def as_count(number: float, unit: str = "") -> str:
    """1.23 PFLOP."""
    prefix, scale = next((one for one in COUNTS if number >= one[1]), ("", 1))
    return f"{number / scale:.3g} {prefix}{unit}".rstrip()


def as_time(seconds: float) -> str:
    """4.5 h."""
    unit, scale = next((one for one in SPANS if seconds >= 2 * one[1]), ("s", 1))
    return f"{seconds / scale:,.3g} {unit}" if seconds < 999 * scale else f"{seconds / scale:,.0f} {unit}"


def show(made: Plan, screen: Console, terms: bool) -> None:
    """The plan on the terminal; `terms`: also the work that its times are made of, and what each rests on."""
    cluster, node = made.cluster, made.cluster.node
    if node.is_cpu:
        where = f"{cluster.nodes} × {cluster.per_node} ranks on {node.cores} cores"
    else:
        where = f"{cluster.nodes} nodes × {cluster.per_node} {node.name}"
    counts = made.counts
    screen.print(
        f"{made.config.name} on {where}: {counts.train:,} images of {len(counts.sizes):,} clients, a pool of "
        f"{counts.pool:,}, {counts.test:,} to test ({counts.told})",
        markup=False,
        soft_wrap=True,
    )
    screen.print(_stages(made))
    if terms:
        screen.print(_terms(made))
    for line in lines(made):
        screen.print(line, markup=False, soft_wrap=True)


def _stages(made: Plan) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("stage", "runs", "time of one", "limited by", "idle", "memory/GPU", "sent/node", "files"):
        table.add_column(title, justify="left" if title in ("stage", "limited by") else "right")
    for row in made.rows:
        one = row.prediction
        limit = one.limit if one.stage.predictable else "the endpoint"
        table.add_row(
            row.stage,
            str(row.runs),
            as_time(one.seconds) if one.stage.predictable else "?",
            limit,
            f"{one.stage.idle:.0%}",
            as_bytes(one.memory) + ("" if one.fits else " !"),
            as_bytes(_sent(row)),
            as_bytes(sum(one.stage.storage.values())),
        )
    total = as_time(made.seconds) if made.seconds is not None else "?"
    table.add_row("all", "", total, "", "", "", "", as_bytes(_files(made)))
    return table


def _sent(row: Row) -> float:
    return sum(t.amount for t in row.prediction.terms if KINDS[t.kind].limit == NETWORK and t.kind != "message")


def _files(made: Plan) -> float:
    """Bytes of everything: what rows hold in common (the client store, a pool) once."""
    held: dict[str, float] = {}
    total = 0.0
    for row in made.rows:
        for name, size in row.prediction.stage.storage.items():
            if name in ("client store", "pool shards", "store"):
                held[name] = size
            else:
                total += size * row.runs
    return total + sum(held.values())


def _terms(made: Plan) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("stage", "work", "of the busiest rank", "rate", "seconds", "rests on"):
        table.add_column(title, justify="left" if title in ("stage", "work", "rests on") else "right")
    for row in made.rows:
        shown = [t for t in row.prediction.terms if t.seconds >= 0.005 * sum(x.seconds for x in row.prediction.terms)]
        for place, term in enumerate(shown):
            unit = KINDS[term.kind].unit
            rate = f"{as_count(1 / term.rate, unit)}/s" if term.rate else "free"
            name = row.stage if place == 0 else ""
            table.add_row(
                name,
                term.kind,
                as_count(term.amount, unit),
                rate,
                f"{term.seconds:,.3g}",
                _basis(term.kind, term.basis),
            )
        if row.prediction.hidden > 0.005 * row.prediction.seconds:
            table.add_row("", "beside one another", "", "", f"−{row.prediction.hidden:,.3g}", "assumed to be hidden")
    return table


def _basis(kind: str, basis: str) -> str:
    if basis == MEASURED:
        return "measured"
    family = kind.partition(".")[0]
    return f"data sheet × {SHARES[family]:.0%} assumed" if family in SHARES else "assumed"


def lines(made: Plan) -> list[str]:
    """What a reader should know and do, a line each."""
    told = []
    for row in made.rows:
        one = row.prediction
        if not one.fits:
            told.append(
                f"{row.stage}: does not fit: {as_bytes(one.memory)} of {as_bytes(made.cluster.node.usable)} a GPU "
                f"({', '.join(f'{k} {as_bytes(v)}' for k, v in one.stage.memory.items())}) → {one.remedy}"
            )
        told += [f"{row.stage}: does not run so: {line}" for line in one.stage.obstacles]
        if one.fits and one.remedy and one.stage.predictable and not row.stage.startswith("evaluation"):
            told.append(f"{row.stage}: limited by {one.limit} → {one.remedy}")
        told += [f"{row.stage}: {note}" for note in one.stage.notes]
    measured = [stage for stage in made.rates.measured]
    rests = f"measured rates for {', '.join(measured)}" if measured else "no measured rate at all"
    told.append(
        f"amounts, bytes and memory are counted; times rest on {rests}, else on data sheets and assumed shares of "
        "peaks (--terms shows each): `fedscale plan --fit RUN --rates FILE` measures"
    )
    return list(dict.fromkeys(told))


def as_dict(made: Plan) -> dict[str, Any]:
    """The same as plain values: seconds, bytes, FLOP."""
    return {
        "name": made.config.name,
        "gpu": made.cluster.node.name,
        "nodes": made.cluster.nodes,
        "ranks_per_node": made.cluster.per_node,
        "seconds": made.seconds,
        "images": {name: getattr(made.counts, name) for name in ("train", "pool", "validation", "test")}
        | {"clients": len(made.counts.sizes), "told": made.counts.told},
        "stages": [_row(row) for row in made.rows],
        "notes": lines(made),
    }


def _row(row: Row) -> dict[str, Any]:
    one = row.prediction
    return {
        "stage": row.stage,
        "runs": row.runs,
        "variants": list(row.variants),
        "seconds": one.seconds if one.stage.predictable else None,
        "limit": one.limit,
        "remedy": one.remedy,
        "idle": one.stage.idle,
        "fits": one.fits,
        "memory_bytes": one.memory,
        "memory": one.stage.memory,
        "sent_bytes": _sent(row),
        "storage": one.stage.storage,
        "total": one.stage.total,
        "obstacles": one.stage.obstacles,
        "terms": [
            {"kind": t.kind, "unit": KINDS[t.kind].unit, "amount": t.amount, "seconds": t.seconds, "basis": t.basis}
            for t in one.terms
        ],
        "hidden_seconds": one.hidden,
    }
