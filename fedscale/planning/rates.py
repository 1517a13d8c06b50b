"""Seconds of a unit of work: measured ones from a file, the data sheet's in the place of those that are missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedscale import files
from fedscale.errors import UserError
from fedscale.planning.hardware import Hardware, sheet
from fedscale.planning.work import KINDS

FORMAT = "fedscale rates 1"
MEASURED, SHEET = "measured", "data sheet"


@dataclass(frozen=True)
class Rates:
    """`measured[stage][kind]`: seconds of one unit in a stage, on `gpu`; `runs[stage]`: of how many runs.

    `federate batched` and `federate graph`, where they were measured, go before `federate`.
    """

    gpu: str
    measured: dict[str, dict[str, float]] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)

    def of(self, stage: str, node: Hardware) -> tuple[dict[str, float], dict[str, str]]:
        """Seconds of one unit of every kind in a stage, and what each rests on."""
        found, basis = sheet(node), dict.fromkeys(KINDS, SHEET)
        base = stage.partition(" ")[0]
        for kind, seconds in self.measured.get(stage, self.measured.get(base, {})).items():
            found[kind], basis[kind] = seconds, MEASURED
        return found, basis

    def save(self, path: Path) -> None:
        """Write the file. Raises UserError where it cannot be written."""
        tree = {"format": FORMAT, "gpu": self.gpu, "runs": self.runs, "seconds": self.measured}
        files.write_json(path, tree)


def load_rates(path: Path, node: Hardware) -> Rates:
    """Raises UserError for a file that is none, and for rates of another device."""
    if not path.exists():
        raise UserError(f"--rates {path}: no such file; `fedscale plan CONFIG --fit RUN --rates {path}` writes one")
    try:
        tree: Any = files.read_json(path)
        if tree["format"] != FORMAT:
            raise ValueError
        measured = {str(s): {str(k): float(v) for k, v in kinds.items()} for s, kinds in tree["seconds"].items()}
        rates = Rates(str(tree["gpu"]), measured, {str(stage): int(n) for stage, n in tree["runs"].items()})
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"--rates {path}: not a file of rates; expected one that `fedscale plan --fit` wrote") from None
    unknown = [kind for kinds in measured.values() for kind in kinds if kind not in KINDS]
    if unknown:
        raise UserError(f"--rates {path}: {unknown[0]} is no kind of work; expected some of {', '.join(KINDS)}")
    if rates.gpu != node.name:
        raise UserError(f"--rates {path}: rates of {rates.gpu}, --gpu {node.name} is asked for; fit some runs there")
    return rates
