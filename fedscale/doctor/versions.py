"""The libraries: each there, in a version that the distribution asks for; torch and torchvision working together."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from fedscale.doctor.finding import Finding, Gravity
from fedscale.doctor.patient import Patient
from fedscale.runs import RECORDED

OURS = "mllm-fedscale"


def versions(patient: Patient) -> list[Finding]:
    """What is required and missing or of another version, and the versions that decide about results."""
    unmet = [line for requirement in required() if (line := lack(requirement))]
    told = {name: version for name in (OURS, *RECORDED) if (version := installed(name))}
    listed = ", ".join(f"{name} {version}" for name, version in told.items())
    if unmet:
        remedy = f"pip install {' '.join(repr(str(one)) for one in required() if lack(one))}"
        return [Finding("libraries", Gravity.BROKEN, "; ".join(unmet), remedy, told)]
    return [Finding("libraries", Gravity.FINE, listed, facts=told), torchvision(patient)]


def torchvision(patient: Patient) -> Finding:
    """A compiled operation of torchvision's, which a build for another torch has not got."""
    check = "torchvision"
    import torch

    try:
        from torchvision.ops import nms

        kept = nms(torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]), torch.tensor([0.5, 1, 0.5]), 0.5)
        if kept.tolist() == [1, 2]:
            return Finding(check, Gravity.FINE, "imports, and its compiled operations compute")
        reason = f"nms keeps {kept.tolist()}, expected [1, 2]"
    except (ImportError, RuntimeError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
    remedy = "install the build that belongs to this torch, of the same index"
    return Finding(check, Gravity.BROKEN, f"does not fit torch {torch.__version__} ({reason})", remedy)


def required(extra: str = "") -> Iterator[Requirement]:
    """What the installed distribution requires; by an extra, what that one adds. Nothing where it is not installed."""
    for text in _requires(OURS):
        requirement = Requirement(text)
        always = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        wanted = (
            always if not extra else requirement.marker is not None and requirement.marker.evaluate({"extra": extra})
        )
        if wanted and not (extra and always):
            requirement.marker = None
            yield requirement


def lack(requirement: Requirement) -> str:
    """What is wrong with a requirement, or the empty string: it is met, and so are its own extras."""
    version = installed(requirement.name)
    if version is None:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version}, expected {requirement.specifier}"
    for text in _requires(requirement.name) if requirement.extras else []:
        inner = Requirement(text)
        if inner.marker and not inner.marker.evaluate({"extra": ""}):
            for extra in requirement.extras:
                if inner.marker.evaluate({"extra": extra}) and installed(inner.name) is None:
                    return f"{inner.name} (of {requirement.name}[{extra}]) is not installed"
    return ""


def installed(name: str) -> str | None:
    """The version of a distribution; None where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requires(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []
