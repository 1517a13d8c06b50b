"""Figures as inline SVG: real text in the page's own font, colours as CSS variables, nothing fetched from anywhere.

Or as files for a paper, SVG and PDF, in the light theme's colours.

matplotlib's object-oriented API alone: no pyplot, no figure registry. A unit of a figure is one CSS pixel.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fedscale import files
from fedscale.report.palette import role, themed

UNITS_PER_INCH = 72
FONT_SIZE = 12.0
SMALL = 11.0


def figure(width: float, height: float) -> Figure:
    """An empty figure of `width` × `height` units on the page's own background."""
    layout = ConstrainedLayoutEngine(w_pad=2 / UNITS_PER_INCH, h_pad=2 / UNITS_PER_INCH)
    size = (width / UNITS_PER_INCH, height / UNITS_PER_INCH)
    return Figure(figsize=size, dpi=UNITS_PER_INCH, facecolor="none", layout=layout)


def style(axes: Axes, grid: str = "y") -> Axes:
    """The look of all figures: no frame, a fine grid along one direction (`x`, `y` or none), quiet tick labels."""
    axes.set_facecolor("none")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, labelsize=SMALL, labelcolor=role("muted"), pad=5)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis="x" if grid == "x" else "y", color=role("grid"), linewidth=1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(role("muted"))
        axis.label.set_fontsize(SMALL)
    return axes


def label(axes: Axes, text: str, at: tuple[float, float], above: float = 0, beside: float = 0, **look: Any) -> None:
    """A small text `above` (below, if negative) or `beside` (to the right of) a point of the data, in figure units."""
    look = {"fontsize": SMALL, "color": role("ink"), "ha": "left" if beside else "center", **look}
    look["va"] = "bottom" if above > 0 else "top" if above < 0 else "center"
    axes.annotate(text, at, xytext=(beside, above), textcoords="offset points", **look)


def inline(made: Figure, description: str, salt: str) -> Markup:
    """The figure as an <svg> for an HTML page. `salt` keeps its ids apart from those of the page's other figures."""
    buffer = io.StringIO()
    # rc_context: these two settings have no place in the object-oriented API, and are put back at once.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        made.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)  # it would apply to the whole page
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(xmlns|xmlns:xlink|version)="[^"]*"', "", svg)
    width, height = (round(float(size) * UNITS_PER_INCH) for size in made.get_size_inches())
    opening = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(description)}">'
    svg = re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1)
    return Markup(_with_unique_ids(themed(svg), salt))


def save(made: Figure, path: Path) -> None:
    """Publish a figure drawn `for_print`, as `path`.svg (text as outlines) and `path`.pdf (text in embedded fonts)."""
    settings: Any = {"svg.fonttype": "path", "svg.hashsalt": path.name, "pdf.fonttype": 42}
    for suffix, undated in (("svg", ("Date", "Creator")), ("pdf", ("CreationDate", "Creator", "Producer"))):
        with files.published(path.with_name(f"{path.name}.{suffix}")) as temporary, matplotlib.rc_context(settings):
            made.savefig(temporary, format=suffix, facecolor="white", metadata=dict.fromkeys(undated))
        made.set_layout_engine("none")  # the same places in both, worked out once


def _with_unique_ids(svg: str, salt: str) -> str:
    """matplotlib numbers its groups anew in each figure (`axes_1`, `patch_2`); in one page each id must be unique."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{salt}-\1"', svg)
    svg = re.sub(r'(xlink:href="#)', rf"\1{salt}-", svg)
    return re.sub(r"url\(#", f"url(#{salt}-", svg)
