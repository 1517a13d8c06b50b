"""What each extra of the distribution would still need; a lack is grave only where the config needs that extra."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from fedscale.config import Config
from fedscale.data import manifest as manifests
from fedscale.data.manifest import Manifest
from fedscale.doctor.finding import Finding, Gravity
from fedscale.doctor.patient import Patient
from fedscale.doctor.versions import OURS, lack, required
from fedscale.stages import children, needed
from fedscale.streams import EXTRAS

PURPOSE = {
    "s3": "pools and captions on s3://",
    "gcs": "pools and captions on gs://",
    "openai": "caption.engine=openai",
    "vllm": "caption.engine=vllm",
    "docs": "the documentation's site",
    "dev": "the tests",
}
OWN_ENVIRONMENT = ("vllm",)  # brings a torch of its own


def extras(patient: Patient) -> list[Finding]:
    """A finding for each extra that the installed distribution names."""
    try:
        names = metadata.metadata(OURS).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        remedy = "pip install the checkout, or the distribution"
        return [Finding("extras", Gravity.UNCHECKED, f"{OURS} is not installed, only imported", remedy)]
    wanted = wanted_by(patient.config) if patient.named else set()
    return [_extra(name, name in wanted) for name in names]


def _extra(name: str, wanted: bool) -> Finding:
    check, purpose = f"extra {name}", PURPOSE.get(name, "an addition")
    lacks = [line for requirement in required(name) if (line := lack(requirement))]
    if not lacks:
        return Finding(check, Gravity.FINE, f"complete ({purpose})")
    own = ", in an environment of its own" if name in OWN_ENVIRONMENT else ""
    remedy = f"pip install '{OURS}[{name}]'{own}"
    if wanted:
        return Finding(check, Gravity.BROKEN, f"the config needs it: {'; '.join(lacks)}", remedy)
    return Finding(check, Gravity.NOTE, f"{'; '.join(lacks)} ({purpose})", remedy)


def wanted_by(config: Config) -> set[str]:
    """The extras without which a stage of the config cannot run."""
    found = set[str]()
    for child in children(config):
        if "caption" in needed(child):
            places = [child.caption.dir or "", _base_of_pool(child)]
            found |= {child.caption.engine, *(EXTRAS.get(place.partition("://")[0], "") for place in places)}
    return found & set(PURPOSE)


def _base_of_pool(config: Config) -> str:
    """Where the imported pool's shards lie; empty where there is none, which another check tells."""
    pool = config.data.pool
    return (Manifest.load(pool).base or "") if pool and (Path(pool) / manifests.FILE).exists() else ""
