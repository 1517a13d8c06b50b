"""Colours. Figures are drawn in stand-in colours that become CSS variables, so that one SVG suits light and dark.

The baseline is grey; the next three (blue, amber, crimson) stay apart for deuteranopes and protanopes, and each
variant has a marker of its own besides, so that no reading depends on colour.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# name: (stand-in that matplotlib draws with, light, dark)
ROLES = {
    "ink": ("#010101", "#1c1f26", "#e9ebf0"),
    "muted": ("#010102", "#626a78", "#a0a8b6"),
    "grid": ("#010103", "#e6e8ec", "#2c313b"),
    "card": ("#010104", "#ffffff", "#171a21"),
    "band": ("#010105", "#f3f4f7", "#1d2129"),
    "bar": ("#010106", "#ced3db", "#3c4350"),
    "heat": ("#010107", "#1f5fbf", "#4d93ee"),
    "on-heat": ("#010108", "#ffffff", "#ffffff"),
    "stage-caption": ("#010109", "#c9b8e3", "#8f79b8"),
    "stage-pretrain": ("#01010a", "#8a6cbf", "#a98fdd"),
    "stage-federate": ("#01010b", "#3f4a63", "#7d8aa8"),
    "stage-align": ("#01010c", "#2a9d8f", "#45c4b4"),
}
SERIES = (  # light, dark
    ("#868c98", "#9aa2b1"),
    ("#1f5fbf", "#5aa2f5"),
    ("#e08e0b", "#f2b84b"),
    ("#b3245c", "#f0608a"),
    ("#4aaee0", "#a6dcff"),
    ("#00664f", "#3fd0b4"),
    ("#6b4aa0", "#bda0ff"),
    ("#7a5c14", "#c9ad5c"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
OPTICAL = {"s": 0.92, "^": 1.18, "v": 1.18, "D": 0.9, "P": 1.12, "X": 1.12, "p": 1.1}  # sizes that look alike
STAND_IN = re.compile(r"#01(?:01|02)[0-9a-f]{2}")


_printing: ContextVar[bool] = ContextVar("printing", default=False)


@contextmanager
def for_print() -> Iterator[None]:
    """Within it figures are drawn in the light theme's own colours: for files, which no style sheet reaches."""
    token = _printing.set(True)
    try:
        yield
    finally:
        _printing.reset(token)


def role(name: str) -> str:
    """The stand-in colour of a role, for matplotlib."""
    return ROLES[name][1 if _printing.get() else 0]


def series(index: int) -> str:
    """The stand-in colour of the index-th variant; the baseline is 0."""
    place = index % len(SERIES)
    return SERIES[place][0] if _printing.get() else f"#0102{place:02x}"


def marker(index: int) -> str:
    """The marker of the index-th variant. After the colours begin again, the markers are shifted by one."""
    return MARKERS[(index + index // len(SERIES)) % len(MARKERS)]


def marker_look(index: int, size: float) -> dict[str, Any]:
    """Marker, size and colour of the index-th variant, with an edge that parts it from what lies below."""
    shape = marker(index)
    edge = {"markeredgecolor": role("card"), "markeredgewidth": 1.2}
    return {"marker": shape, "markersize": size * OPTICAL.get(shape, 1.0), "color": series(index), **edge}


def themed(svg: str) -> str:
    """The SVG with every stand-in colour replaced by its CSS variable."""
    names = {stand_in: name for name, (stand_in, _, _) in ROLES.items()}
    names |= {series(index): f"series-{index}" for index in range(len(SERIES))}
    return STAND_IN.sub(lambda match: f"var(--{names[match.group()]})", svg)


def css(dark: bool) -> str:
    """The CSS variables of one theme."""
    column = 1 if dark else 0
    pairs = {name: colours[1 + column] for name, colours in ROLES.items()}
    pairs |= {f"series-{index}": colours[column] for index, colours in enumerate(SERIES)}
    return " ".join(f"--{name}: {colour};" for name, colour in pairs.items())
