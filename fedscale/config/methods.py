"""The federated methods by name, with their options. Knows where their code is and imports none of it."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Any

from fedscale import plugins
from fedscale.config import method_options as options
from fedscale.config.convert import build
from fedscale.errors import UserError

KEY = "federate.method"
GROUP = "fedscale.methods"  # entry points of other packages
HERE = "fedscale.federated.methods"

BUILT_IN: dict[str, tuple[str, type]] = {
    "fedavg": (f"{HERE}.fedavg:FedAvg", options.NoOptions),
    "fedavgm": (f"{HERE}.fedopt:FedAvgM", options.MomentumOptions),
    "fedadagrad": (f"{HERE}.fedopt:FedAdagrad", options.AdaptiveOptions),
    "fedadam": (f"{HERE}.fedopt:FedAdam", options.AdaptiveOptions),
    "fedyogi": (f"{HERE}.fedopt:FedYogi", options.AdaptiveOptions),
    "fedprox": (f"{HERE}.fedprox:FedProx", options.ProxOptions),
    "scaffold": (f"{HERE}.scaffold:Scaffold", options.ScaffoldOptions),
    "feddyn": (f"{HERE}.feddyn:FedDyn", options.DynOptions),
    "fednova": (f"{HERE}.fednova:FedNova", options.NoOptions),
    "moon": (f"{HERE}.moon:Moon", options.MoonOptions),
    "fedrs": (f"{HERE}.fedrs:FedRS", options.RestrictedOptions),
    "fedfocal": (f"{HERE}.fedfocal:FedFocal", options.FocalOptions),
    "ratio_loss": (f"{HERE}.ratio_loss:RatioLoss", options.RatioOptions),
    "balanced_softmax": (f"{HERE}.balanced_softmax:BalancedSoftmax", options.BalancedOptions),
    "logit_adjustment": (f"{HERE}.logit_adjustment:LogitAdjustment", options.AdjustmentOptions),
    "feddf": (f"{HERE}.feddf:FedDF", options.DistillationOptions),
    "fedbe": (f"{HERE}.fedbe:FedBE", options.EnsembleOptions),
    "tau_norm": (f"{HERE}.tau_norm:TauNorm", options.TauNormOptions),
    "ccvr": (f"{HERE}.ccvr:CCVR", options.CcvrOptions),
    "creff": (f"{HERE}.creff:CReFF", options.CreffOptions),
    "clip2fl": (f"{HERE}.clip2fl:CLIP2FL", options.Clip2flOptions),
    "fedgrab": (f"{HERE}.fedgrab:FedGraB", options.GrabOptions),
    "fedyoyo": (f"{HERE}.fedyoyo:FedYoYo", options.YoyoOptions),
}
WITH_CLIP = frozenset({"clip2fl"})  # built-in methods whose clients need CLIP's view of their images


def target_of(name: str) -> str:
    """`package.module:Name` of a method. Raises UserError for a name that is neither built in nor installed."""
    if name in BUILT_IN:
        return BUILT_IN[name][0]
    return plugins.target_of(name, KEY, GROUP, BUILT_IN)


def needs_clip(name: str) -> bool:
    """Whether clients of this method learn from CLIP; a method of another package is imported to know."""
    if name in BUILT_IN:
        return name in WITH_CLIP
    return "clip" in getattr(plugins.load(target_of(name), KEY), "sides", ())


def resolved_options(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The method's options, defaults filled in. Raises UserError for one that it has not, or of a wrong value."""
    kind = options_of(name)
    foreign = [key for key in given if key not in kind.__dataclass_fields__]
    if foreign:
        key = foreign[0]
        owners = [other for other in BUILT_IN if key in options_of(other).__dataclass_fields__]
        whose = f"; it is an option of {', '.join(owners)}" if owners else ""
        own = ", ".join(kind.__dataclass_fields__) or "no options"
        raise UserError(f"{options.PATH}.{key}: {name} has no such option{whose}; {name} has {own}")
    return asdict(build(kind, given, options.PATH))


def options_of(name: str) -> Any:
    """The dataclass of a method's options; one of another package is imported for it."""
    target = target_of(name)
    if name in BUILT_IN:
        return BUILT_IN[name][1]
    kind = getattr(plugins.load(target, KEY), "Options", options.NoOptions)
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise UserError(f"{KEY}={name}: its Options is no dataclass; expected one, whose fields have defaults")
    return kind
