"""From a drawing to SVG within a page, and to PNG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from sarathi.bench.report.colors import INK, LINE, MUTED, NAMES, SURFACE

WIDE, NARROW = 10.0, 4.3  # inches
_DOTS = 150  # per inch of PNG

_SETTINGS: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.formatter.use_mathtext": False,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.facecolor": SURFACE,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",  # text stays text, in the font of the page
    "svg.hashsalt": "sarathi",  # the same data make the same file
    "text.color": INK,
    "text.parse_math": False,  # a label may hold dollar signs
    "xtick.color": LINE,
    "xtick.labelcolor": MUTED,
    "xtick.labelsize": 9.5,
    "xtick.minor.visible": False,
    "ytick.color": LINE,
    "ytick.labelcolor": MUTED,
    "ytick.labelsize": 9.5,
}
_VARIABLES = {light: f"var(--{name})" for name, (light, _) in reversed(NAMES.items())}


@dataclass(frozen=True)
class Drawing:
    """A figure that can be drawn at two widths."""

    name: str  # of the PNG
    title: str
    caption: str  # how to read it
    alternative: str  # what it shows, for those who do not see it
    draw: Callable[[Figure, bool], None]  # the second: whether it is narrow
    height: float  # inches
    narrow_height: float


@dataclass(frozen=True)
class Rendered:
    """Its SVG take their colours from the page's variables."""

    drawing: Drawing
    wide: str
    narrow: str
    png: bytes


def render(drawing: Drawing) -> Rendered:
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # Labels may be in any script. What the font lacks is a box in the PNG alone.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        wide = _drawn(drawing, narrow=False)
        narrow = _drawn(drawing, narrow=True)
        return Rendered(
            drawing,
            _svg(wide, f"{drawing.name}-wide"),
            _svg(narrow, f"{drawing.name}-narrow"),
            _bytes(wide, "png", without="Software"),
        )


def _drawn(drawing: Drawing, narrow: bool) -> Figure:
    size = (NARROW, drawing.narrow_height) if narrow else (WIDE, drawing.height)
    figure = Figure(figsize=size, layout="constrained")
    drawing.draw(figure, narrow)
    return figure


def _bytes(figure: Figure, form: str, without: str) -> bytes:
    """
    Args:
        without: what is not to be told of the making of the file.
    """
    file = io.BytesIO()
    transparent = form == "svg"
    figure.savefig(file, format=form, dpi=_DOTS, transparent=transparent, metadata={without: None})
    return file.getvalue()


def _svg(figure: Figure, prefix: str) -> str:
    """An element for HTML: no prolog, no metadata, ids that no other figure has."""
    text = _bytes(figure, "svg", without="Date").decode("utf-8")
    text = text[text.index("<svg") :]
    for part in ("metadata", "style"):
        text = re.sub(rf"<{part}\b.*?</{part}>", "", text, count=1, flags=re.DOTALL)
    # Between tags is text of the user.
    text = re.sub(r"<[^>]+>", lambda match: _tag(match[0], prefix), text)
    return re.sub(r"\n\s*", "\n", text)


def _tag(tag: str, prefix: str) -> str:
    if tag.startswith("<svg"):
        tag = re.sub(r' (width|height|version)="[^"]*"', "", tag)
        return f'{tag[:-1]} aria-hidden="true">'
    if tag.startswith("<g "):
        tag = re.sub(r' id="[^"]*"', "", tag)  # nothing refers to them
    tag = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}-", tag)
    tag = re.sub(r"(\.\d\d)\d+", r"\1", tag)  # hundredths of a point are small enough
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    return re.sub(r"(?<=: )#[0-9a-f]{6}\b", _variable, tag)


def _variable(match: re.Match[str]) -> str:
    return _VARIABLES.get(match[0], match[0])
