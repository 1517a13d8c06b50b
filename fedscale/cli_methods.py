"""What `fedscale methods` shows: a table, or a paragraph each where a terminal is too narrow for one."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

NARROW = 140  # columns below which the table's cells would be a word wide
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


def methods_paragraphs(rows: list[dict[str, Any]]) -> list[RenderableType]:
    """The same for a narrow terminal."""
    shown: list[RenderableType] = []
    for row in rows:
        origin = "" if row["from"] == "built in" else f"({row['from']})"
        said = " ".join(part for part in (row.get("citation", ""), origin) if part)
        shown.append(Text.assemble((row["method"], "bold"), f"  {said}"))
        facts = [f"{name}: {row[name]}" for name in ("error", "client", "upload", "server") if row.get(name)]
        options = ", ".join(f"{name} {value}" for name, value in row.get("options", {}).items())
        facts += [f"options: {options}"] if options else []
        facts += [f"federate.shard {row['shard']}"] if row.get("shard", "any") != "any" else []
        shown += [Padding(Text(fact, style="dim"), (0, 0, 0, 4)) for fact in facts]
    return shown
