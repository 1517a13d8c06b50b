"""Schedules of pretraining: pure functions of the step, so that resuming needs no scheduler state."""

from __future__ import annotations

import math

from fedscale.config.schema import AlphaConfig


def alpha_at(step: int, steps: int, config: AlphaConfig) -> float:
    """α(t), the student's weight: from `start` at step 0 to `end` at the last step (METHOD.md, stage 1.2)."""
    if config.kind == "constant":
        return config.end
    done = step / (steps - 1) if steps > 1 else 1.0
    if config.kind == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return config.start + (config.end - config.start) * done


def lr_at(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up over the share `warmup` of all steps, then a cosine that would reach 0 at step `steps`."""
    warm = round(warmup * steps)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2
