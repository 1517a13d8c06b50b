"""What there is to choose from: every method with its citation, cost beyond FedAvg, options, and where it runs."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from fedscale import plugins
from fedscale.config.methods import BUILT_IN, GROUP, options_of
from fedscale.config.schema import FederateConfig
from fedscale.errors import UserError
from fedscale.federated.fit import needs_of
from fedscale.federated.methods import Problem, method_class

PARTS = ("client", "upload", "server")
BACKENDS = ("loop", "batched", "graph")  # a method is written once for all of them
TYPICAL = Problem(10, 256, 20)  # sizes that no cell of the table depends on

# What is no method of stage 2 by itself, but the three stages together.
PIPELINE = {
    "method": "mllm_llava_fl",
    "citation": "Zhang et al., WACV 2025, arXiv:2409.06067",
    "client": "",
    "upload": "",
    "server": "captioning by an MLLM, pretraining, alignment",
    "options": {},
    "backends": list(BACKENDS),
    "shard": "any",
    "from": "pretrain + fedavg + align (configs/methods/mllm_llava_fl.yaml)",
}


def method_rows() -> list[dict[str, Any]]:
    """A row for each built-in method, the pipeline, and each installed one; one that cannot be imported says why."""
    rows = [row_of(name, "built in") for name in BUILT_IN]
    rows.append(dict(PIPELINE))
    for name, target in plugins.installed(GROUP).items():
        try:
            rows.append(row_of(name, target))
        except UserError as error:
            rows.append({"method": name, "from": target, "error": str(error)})
    return rows


def row_of(name: str, origin: str) -> dict[str, Any]:
    """One method's row; `shard` is `any`, or the reason why its clients cannot be cut over ranks."""
    kind = method_class(name)
    needs = needs_of(kind(FederateConfig(method=name), TYPICAL))
    return {
        "method": name,
        "citation": kind.citation,
        **costs_of(kind.extra_cost),
        "options": asdict(options_of(name)()),
        "backends": list(BACKENDS),
        "shard": f"1: needs {needs[0]}" if needs else "any",
        "from": origin,
    }


def costs_of(extra_cost: str) -> dict[str, str]:
    """`client: a; upload: b; server: c, d` by part, "" where there is none. Raises UserError for another form."""
    costs = dict.fromkeys(PARTS, "")
    if extra_cost == "none":
        return costs
    before, *found = re.split(rf"(?:^|;)\s*({'|'.join(PARTS)}):", extra_cost)
    if before.strip() or not found:
        raise UserError(f"extra_cost={extra_cost}: expected none, or `client: …; upload: …; server: …`")
    return costs | {name: cost.strip() for name, cost in zip(found[::2], found[1::2], strict=True)}
