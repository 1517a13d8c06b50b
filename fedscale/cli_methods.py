"""The table of `fedscale methods`."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

HEADS = ("method", "citation", "client compute", "upload", "server compute", "options", "backends", "shard")


def methods_table(rows: list[dict[str, Any]]) -> Table:
    """The rows of `api.methods`; what is no method built in says under its name where it is from."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in HEADS:
        table.add_column(head, overflow="fold", min_width=len(head) if head != "method" else 16)
    for row in rows:
        origin = "" if row["from"] == "built in" else f"\n[dim]{escape(row['from'])}[/dim]"
        if "error" in row:
            table.add_row(escape(row["method"]) + origin, escape(row["error"]))
            continue
        costs = [escape(row[name] or "–") for name in ("citation", "client", "upload", "server")]
        options = "\n".join(f"{name} {value}" for name, value in row["options"].items())
        where = ("\n".join(row["backends"]), escape(row["shard"]))
        table.add_row(escape(row["method"]) + origin, *costs, escape(options or "–"), *where)
    return table
