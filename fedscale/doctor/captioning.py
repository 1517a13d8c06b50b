"""What the caption engine needs beside weights and libraries: an endpoint and its key, or a GPU."""

from __future__ import annotations

from fedscale.doctor.finding import Finding, Gravity
from fedscale.doctor.patient import Patient
from fedscale.stages import children, needed


def captioning(patient: Patient) -> Finding | None:
    """None where no run captions. Raises UserError: an endpoint that is not there, a key that is not set."""
    engines = {run.caption.engine: run for run in children(patient.config) if "caption" in needed(run)}
    if "openai" in engines:
        from fedscale.server.caption.engines.openai_chat import api_key
        from fedscale.server.caption.engines.reachable import check_reachable

        settings = engines["openai"].caption.openai
        api_key(settings)
        check_reachable(settings.base_url)
        told = f"openai: something answers at {settings.base_url}, and {settings.key_env} is set (not tried)"
        return Finding("captioning", Gravity.FINE, told)
    if "vllm" in engines and patient.device.type != "cuda":
        found = "vllm, and torch sees no GPU"
        return Finding("captioning", Gravity.NOTE, found, "caption on a machine with a GPU, or caption.engine=hf")
    return Finding("captioning", Gravity.FINE, f"engine {', '.join(engines)}") if engines else None
