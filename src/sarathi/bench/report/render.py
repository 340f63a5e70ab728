"""Draws figures with matplotlib: as SVG within a page, at two widths, and as PNG."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from sarathi.bench.report.chart import INK, LINE, MUTED, NAMES, SURFACE, Drawing

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
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclass(frozen=True)
class Rendered:
    """A drawing as files: SVG, coloured by the variables of the page, and PNG."""

    wide: str
    narrow: str
    png: bytes


def render(drawing: Drawing) -> Rendered:
    """Draw a figure at both widths."""
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # Labels may be in any script. A glyph that the font lacks is a box, in the PNG only.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        wide = _drawn(drawing, (WIDE, drawing.height), narrow=False)
        narrow = _drawn(drawing, (NARROW, drawing.narrow_height), narrow=True)
        return Rendered(
            _svg(wide, f"{drawing.name}-wide"),
            _svg(narrow, f"{drawing.name}-narrow"),
            _saved(wide, format="png", dpi=_DOTS, metadata={"Software": None}),
        )


def _drawn(drawing: Drawing, size: tuple[float, float], narrow: bool) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    drawing.draw(figure, narrow)
    return figure


def _saved(figure: Figure, **options: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, **options)
    return file.getvalue()


def _svg(figure: Figure, name: str) -> str:
    """Return an element for a page, whose ids no other figure has."""
    with matplotlib.rc_context({"svg.hashsalt": name}):
        data = _saved(figure, format="svg", transparent=True, metadata=_NO_METADATA)
    text = data.decode("utf-8")
    # The text between tags may be a user's.
    return re.sub(r"<[^>]+>", lambda tag: _styled(tag[0]), text[text.index("<svg") :])


def _styled(tag: str) -> str:
    """Take colours from the page, and leave out ids without references and needless digits."""
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag)
    tag = re.sub(r"(\.\d\d)\d+", r"\1", tag)
    return re.sub(
        r"(?<=: )#[0-9a-f]{6}\b", lambda colour: _VARIABLES.get(colour[0], colour[0]), tag
    )
