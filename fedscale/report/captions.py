"""What the captioning stage recorded of itself, and a few example rows out of its sidecars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedscale import files
from fedscale.errors import UserError
from fedscale.report.records import Captions, Example

NUM_EXAMPLES = 4
NOT_OK = (
    "truncated",
    "empty",
    "repeated",
    "generation_error",
    "decode_error",
    "too_large",
    "near_duplicate",
)


def read_captions(folder: Path, config: dict[str, Any]) -> Captions | None:
    """The captions of one run: the counts of done.json, and examples of the sidecars (beside it or in `caption.dir`).

    None where the stage has not finished. Raises UserError for a done.json without the counts.
    """
    marker = folder / "done.json"
    if not marker.exists():
        return None
    done = files.read_json(marker)
    beside = config.get("caption", {}).get("dir")
    try:
        return Captions(
            engine=str(done["engine"]),
            model=str(done["model"] or ""),
            images=int(done["images"]),
            ok=int(done["ok"]),
            not_ok={status: int(done[status]) for status in NOT_OK if done.get(status)},
            naming_accuracy=done["class_naming_accuracy"],
            examples=_examples(Path(beside) if beside else folder),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{marker}: lacks the captioning counts ({error!r}); run `fedscale caption` again") from None


def _examples(folder: Path) -> tuple[Example, ...]:
    """The first good row of each of the first few keywords, so that the examples differ; the first sidecars suffice."""
    chosen: dict[str, Example] = {}
    for sidecar in sorted(folder.glob("[0-9]*.jsonl"))[:2]:
        for row in files.read_jsonl(sidecar):
            word = str(row.get("keyword") or row["key"])
            if row.get("status") == "ok" and word not in chosen and len(chosen) < NUM_EXAMPLES:
                texts = {kind: "\n".join(turns) for kind, turns in row.get("texts", {}).items()}
                chosen[word] = Example(str(row["key"]), str(row.get("keyword") or ""), texts)
    return tuple(chosen.values())
