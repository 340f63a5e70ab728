"""Charts as data: panels, legends, colours by meaning; drawn as SVG for a page, and as PNG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from sarathi.bench.report.table import plain
from sarathi.telemetry import RequestRecord

# After the palette of Okabe and Ito, which readers with any kind of colour vision can distinguish;
# the lightest are darkened on white. With more labels than colours, markers differ.
LABELS = (  # light, dark
    ("#0067a5", "#58b1ea"),
    ("#d1570c", "#f98c4e"),
    ("#00866a", "#2fc39c"),
    ("#b4568e", "#e69fc8"),
    ("#b07c00", "#eec04a"),
    ("#4a4fb0", "#a3a7f5"),
    ("#7a5c45", "#c9a98f"),
)
_ROLES = {
    "surface": ("#ffffff", "#171b21"),
    "page": ("#f5f6f8", "#0f1216"),
    "ink": ("#1b222c", "#e4e8ee"),
    "muted": ("#5c6675", "#9aa5b4"),
    "line": ("#dce0e6", "#2e3641"),
    "target": ("#b00f3a", "#ff7a9c"),
    "stall": ("#f2b8a2", "#7d3a24"),
    "bad": ("#a3123a", "#ff8aa6"),
    "bad-surface": ("#fdecef", "#3a1620"),
    "warn": ("#7a5200", "#f0c060"),
    "warn-surface": ("#fdf4dc", "#352a10"),
    "good": ("#0b6b4f", "#4fd1a5"),
}

LIGHT = {name: light for name, (light, _) in _ROLES.items()}
NAMES = _ROLES | {f"label-{i}": both for i, both in enumerate(LABELS)}

INK, MUTED, LINE, SURFACE = LIGHT["ink"], LIGHT["muted"], LIGHT["line"], LIGHT["surface"]
TARGET, STALL = LIGHT["target"], LIGHT["stall"]

_MARKERS = "osD^vPX"


def colour(index: int) -> str:
    """Return the colour of the label at this index, on a light background."""
    return LABELS[index % len(LABELS)][0]


def marker(index: int) -> str:
    """Return the marker of the label at this index."""
    return _MARKERS[(index + index // len(LABELS)) % len(_MARKERS)]


def definitions(dark: bool) -> str:
    """Return all colours as CSS variables."""
    return "".join(f"--{name}:{both[dark]};" for name, both in NAMES.items())


Dashes: TypeAlias = Literal["-"] | tuple[float, tuple[float, ...]]

_LONGEST, _LONGEST_NARROW = 48, 32  # characters of a label
_COLUMNS, _COLUMNS_NARROW = 112, 46  # characters of a row of the legend


@dataclass(frozen=True)
class Key:
    """An entry of a legend: a line or marks, or a box."""

    label: str  # shortened to fit
    style: Mapping[str, Any] = field(hash=False)  # as matplotlib has it
    rest: str = ""  # after the label
    detail: str = ""  # after both; below them in a narrow figure
    box: bool = False

    def text(self, narrow: bool) -> str:
        """Return the text beside the symbol."""
        detail = ("\n" if narrow else ": ") + self.detail if self.detail else ""
        return short(self.label, narrow) + self.rest + detail


@dataclass(frozen=True)
class Panel:
    """The axes of a plot, and what is drawn on them."""

    draw: Callable[[Axes, bool], None]  # the second argument: whether the figure is narrow
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    log_x: bool = False
    log_y: bool = False
    x_ticks: Sequence[float] = ()
    targets: Sequence[tuple[float, str]] = ()  # lines with a text
    targets_text: Literal["left", "right", "top"] = "left"  # top: the lines are vertical
    height: float = 1.0  # relative to other rows


@dataclass(frozen=True)
class Drawing:
    """A figure that can be drawn at two widths."""

    name: str  # of the PNG
    title: str
    caption: str  # how to read it
    alternative: str  # what it shows, as text for screen readers
    panels: Sequence[Panel]
    height: float  # inches
    narrow_height: float
    keys: Sequence[Key] = ()  # none: no legend
    stacked: bool = False  # one below the other, with a common x axis; else two in a row
    share_y: bool = False  # within a row

    def draw(self, narrow: bool) -> Figure:
        """Draw all panels and the legend."""
        size = (4.3, self.narrow_height) if narrow else (10.0, self.height)
        figure = Figure(figsize=size, layout="constrained")
        panels = self.panels
        columns = 1 if narrow or self.stacked or len(panels) == 1 else 2
        starts = range(0, len(panels), columns)
        grid = figure.subplots(
            len(starts),
            columns,
            squeeze=False,
            sharex=self.stacked,
            sharey=self.share_y and not narrow,
            height_ratios=[max(one.height for one in panels[i : i + columns]) for i in starts],
        ).ravel()
        raised = any(panel.targets and panel.targets_text == "top" for panel in panels)
        for axes, panel in zip(grid, panels, strict=False):
            _draw_panel(axes, panel, narrow, title_pad=20 if raised else 6)
        for spare in grid[len(panels) :]:
            spare.set_axis_off()
        if self.keys:
            _legend(figure, self.keys, narrow)
        return figure


def _draw_panel(axes: Axes, panel: Panel, narrow: bool, title_pad: float) -> None:
    if panel.log_x:
        axes.set_xscale("log")
    if panel.log_y:
        axes.set_yscale("log")
    panel.draw(axes, narrow)
    for at, text in panel.targets:
        _draw_target(axes, at, text, panel.targets_text)
    if panel.log_x:
        _logarithmic(axes.xaxis)
    if panel.log_y:
        _logarithmic(axes.yaxis)
    if panel.x_ticks:
        axes.set_xticks(panel.x_ticks, [plain(tick) for tick in panel.x_ticks])
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    if panel.title:
        axes.set_title(panel.title, pad=title_pad)


def _draw_target(axes: Axes, at: float, text: str, side: str) -> None:
    style: dict[str, Any] = {"color": TARGET, "linewidth": 1.2, "zorder": 1.5}
    style["linestyle"] = (0, (4, 3))
    if side == "top":
        axes.axvline(at, **style)
        words(axes, (at, 1), text, (0, 7), axes.get_xaxis_transform(), TARGET, "center")
    else:
        axes.axhline(at, **style)
        x = 0.01 if side == "left" else 0.99
        words(axes, (x, at), text, (0, 7), axes.get_yaxis_transform(), TARGET, side)


def _logarithmic(axis: Axis) -> None:
    """Set few ticks with plain numbers on a logarithmic axis whose limits are set."""
    low, high = axis.get_view_interval()
    ratio = high / low
    steps = {12: (1, 2, 3, 5), 60: (1, 2, 5), 3000: (1, 3)}  # below a ratio
    subs = next((subs for below, subs in steps.items() if ratio < below), (1,))
    axis.set_major_locator(MaxNLocator(5) if ratio < 4 else LogLocator(subs=subs, numticks=20))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))


def _legend(figure: Figure, keys: Sequence[Key], narrow: bool) -> None:
    """Add a legend below the axes, in as many columns as fit."""
    handles = [Patch(**one.style) if one.box else Line2D([], [], **one.style) for one in keys]
    texts = [one.text(narrow) for one in keys]
    longest = max(len(line) for text in texts for line in text.split("\n"))
    width = _COLUMNS_NARROW if narrow else _COLUMNS
    columns = max(1, min(len(texts), width // (longest + 7)))
    # Texts that begin with an underscore would be left out, hence the placeholders.
    found = figure.legend(handles, ["-"] * len(texts), loc="outside lower left", ncols=columns)
    for place, text in zip(found.get_texts(), texts, strict=True):
        place.set_text(text)


def short(text: str, narrow: bool) -> str:
    """Shorten a text to one line that fits into a figure."""
    text = "".join(c if c.isprintable() else " " for c in text)
    most = _LONGEST_NARROW if narrow else _LONGEST
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def dots(index: int) -> dict[str, Any]:
    """Return the style of unconnected marks of a label."""
    return {"color": colour(index), "linestyle": "none", "marker": marker(index)}


def name_rows(axes: Axes, names: Sequence[str], spacing: float = 1.0, middle: float = 0.0) -> None:
    """Name rows from the top on the y axis, the first at `middle`, instead of numbers."""
    axes.set_yticks([middle + i * spacing for i in range(len(names))], names)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(axis="y", visible=False)


def words(
    axes: Axes,
    point: tuple[float, float],
    text: str,
    offset: tuple[float, float] = (6, 0),
    transform: object = "data",
    colour: str | None = None,
    align: str = "left",
) -> None:
    """Write a short text near a point, at an offset in typographic points."""
    axes.annotate(
        text,
        point,
        xycoords=transform,  # type: ignore[arg-type]
        xytext=offset,
        textcoords="offset points",
        ha=align,
        va="center",
        color=colour,
        fontsize=9,
        bbox={"facecolor": SURFACE, "edgecolor": "none", "alpha": 0.7, "pad": 1},
    )


def boxes(
    axes: Axes, corners: Iterable[tuple[float, float, float, float]], face: str, alpha: float = 1
) -> None:
    """Draw rectangles (left, right, bottom, top) as one path, which keeps the file small."""
    paths = [
        Path([(left, low), (left, high), (right, high), (right, low), (left, low)], closed=True)
        for left, right, low, high in corners
    ]
    if paths:
        path = Path.make_compound_path(*paths)
        axes.add_patch(PathPatch(path, facecolor=face, edgecolor="none", alpha=alpha))


Array = npt.NDArray[np.float64]

TAIL = 3.3  # as a `depth`: beyond 99.9 %, where figures end
_KEPT = (0.5, 0.9, 0.99, 0.999)  # shares


def depth(share: npt.ArrayLike) -> Array:
    """Return how deep in the tail a share of all values is: 0.9 is 1, 0.99 is 2, 0.999 is 3."""
    return np.asarray(-np.log10(1 - np.asarray(share, np.float64)))


def quantiles(values: npt.ArrayLike, most: int = 1000) -> tuple[Array, Array]:
    """Return some values, and the shares of all that do not exceed them, evenly by depth.

    P50, P90, P99 and P99.9 are exact. Of more than `most` values, those beyond `TAIL` are left out.
    The share of the greatest value is reduced by half a rank, since 1 has no depth.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    count = len(ordered)
    if not count:
        return ordered, ordered
    ranks = np.arange(1, count + 1, dtype=np.float64)
    if count > most:
        shares = np.append(1 - 10 ** -np.linspace(0, TAIL, most - len(_KEPT)), _KEPT)
        ranks = np.unique(np.ceil(shares * count)).clip(1, count)
    return ordered[ranks.astype(np.int64) - 1], np.minimum(ranks, count - 0.5) / count


def in_flight(records: Sequence[RequestRecord], most: int = 600) -> tuple[Array, Array]:
    """Return times, and the number of open requests from each time on.

    With more than `most` changes, each time stands for a span, with the largest number in it.
    """
    begins = np.array([record.arrival for record in records])
    ends = np.array([record.end for record in records])
    times = np.concatenate([begins, ends])
    order = np.argsort(times, kind="stable")  # of the same time: arrivals first
    times = times[order]
    counts = np.cumsum(np.repeat([1.0, -1.0], len(records))[order])
    if len(times) <= most:
        return times, counts
    parts = np.linspace(0, len(times), most + 1).astype(np.int64)[:-1]
    peaks: Array = np.maximum.reduceat(counts, parts)
    peaks[-1] = counts[-1]
    return times[parts], peaks


def spread(values: Sequence[float], most: int) -> list[int]:
    """Return indices of at most `most` values: evenly by rank, with the least and the greatest."""
    order = np.argsort(np.asarray(values, np.float64), kind="stable")
    if len(order) > most:
        order = order[np.linspace(0, len(order) - 1, most).round().astype(np.int64)]
    return [int(position) for position in order]


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
        wide, narrow = drawing.draw(narrow=False), drawing.draw(narrow=True)
        return Rendered(
            _svg(wide, f"{drawing.name}-wide"),
            _svg(narrow, f"{drawing.name}-narrow"),
            _saved(wide, format="png", dpi=150, metadata={"Software": None}),
        )


def _saved(figure: Figure, **options: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, **options)
    return file.getvalue()


def _svg(figure: Figure, name: str) -> str:
    """Return an element for a page, whose ids no other figure has."""
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        data = _saved(figure, format="svg", transparent=True, metadata=no_metadata)
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
