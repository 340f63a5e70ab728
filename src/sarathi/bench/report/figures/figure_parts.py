"""Parts that several figures share: legends, axes, targets, texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from sarathi.bench.number_format import milliseconds, plain, rate
from sarathi.bench.report.colors import LABELS, SURFACE, TARGET, colour, marker
from sarathi.bench.report.measured import ReportData, rate_of
from sarathi.bench.results import Run

Dashes: TypeAlias = Literal["-"] | tuple[float, tuple[float, ...]]

_LONGEST, _LONGEST_NARROW = 48, 32  # characters of a label
_COLUMNS, _COLUMNS_NARROW = 112, 46  # characters of a row of the legend
_DASHES: tuple[Dashes, ...] = (
    "-",
    (0, (6, 2)),
    (0, (2, 1.5)),
    (0, (6, 2, 1, 2)),
    (0, (1, 2.5)),
    (0, (10, 3)),
)


def short(text: str, narrow: bool) -> str:
    """Shorten a text to one line that fits into a figure."""
    text = "".join(c if c.isprintable() else " " for c in text)
    most = _LONGEST_NARROW if narrow else _LONGEST
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def name(measured: ReportData, run: Run, narrow: bool) -> str:
    """Return `ReportData.name` in short form."""
    label = short(run.label, narrow)
    return label if len(measured.shown) == 1 else f"{label}, {rate(rate_of(run))}"


def legend(figure: Figure, entries: Iterable[tuple[Artist, str]], narrow: bool) -> None:
    """Add a legend below the axes, in as many columns as fit."""
    handles, texts = zip(*entries, strict=True)
    longest = max(len(line) for text in texts for line in text.split("\n"))
    width = _COLUMNS_NARROW if narrow else _COLUMNS
    columns = max(1, min(len(texts), width // (longest + 7)))
    # Texts that begin with an underscore would be left out, hence the placeholders.
    found = figure.legend(handles, ["-"] * len(texts), loc="outside lower left", ncols=columns)
    for place, text in zip(found.get_texts(), texts, strict=True):
        place.set_text(text)


def key(index: int, dashes: Dashes = "-", with_marker: bool = False) -> Line2D:
    """Return the symbol of a label in a legend."""
    mark = marker(index) if with_marker else "none"
    return Line2D([], [], color=colour(index), linestyle=dashes, marker=mark)


def styles(measured: ReportData) -> list[tuple[Run, int, Dashes]]:
    """Return the shown runs, each with the index of its label and the dashes of its line."""
    one_label = len({run.label for run in measured.shown}) == 1
    found = []
    for position, run in enumerate(measured.shown):
        index = measured.labels.index(run.label)
        of_dashes = position if one_label else index // len(LABELS)  # colours repeat
        found.append((run, index, _DASHES[of_dashes % len(_DASHES)]))
    return found


def logarithmic(axis: Axis) -> None:
    """Set few ticks with plain numbers on a logarithmic axis whose limits are set."""
    low, high = axis.get_view_interval()
    ratio = high / low
    if ratio < 4:
        axis.set_major_locator(MaxNLocator(5))
    elif ratio < 12:
        axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5), numticks=20))
    elif ratio < 60:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 3) if ratio < 3000 else (1,), numticks=20))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))


def draw_targets(axes: Axes, targets: Sequence[float], vertical: bool) -> None:
    """Draw lines at targets of TBT.

    Args:
        targets: seconds; the axis has milliseconds.
    """
    for target in targets:
        text = f"target {milliseconds(target)}"
        style: dict[str, Any] = {
            "color": TARGET,
            "linewidth": 1.2,
            "linestyle": (0, (4, 3)),
            "zorder": 1.5,
        }
        if vertical:
            axes.axvline(1000 * target, **style)
            transform = axes.get_xaxis_transform()
            words(axes, (1000 * target, 1), text, (0, 7), transform, TARGET, "center")
        else:
            axes.axhline(1000 * target, **style)
            transform = axes.get_yaxis_transform()
            words(axes, (0.01, 1000 * target), text, (0, 7), transform, TARGET)


def words(
    axes: Axes,
    point: tuple[float, float],
    text: str,
    offset: tuple[float, float] = (6, 0),
    transform: object = "data",
    colour: str | None = None,
    align: str = "left",
) -> None:
    """Write a short text near a point.

    Args:
        offset: points.
    """
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
