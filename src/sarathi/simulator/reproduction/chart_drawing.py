"""Charts drawn in the style of the other reports. Imports the plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sarathi.bench.number_format import number, plain
from sarathi.bench.report.colors import INK, MUTED, SURFACE, TARGET, colour, marker
from sarathi.bench.report.figures.figure_parts import Dashes, key, legend, logarithmic, words
from sarathi.bench.report.render import Drawing
from sarathi.simulator.reproduction.experiment import ChartLine, Findings, GridPanel
from sarathi.simulator.reproduction.experiment import Figure as ExperimentFigure

_PUBLISHED: Dashes = (0, (4, 2.5))
_MOST_TICKS = 8  # that are labelled one by one
_BAR, _HEAD, _FOOT = 0.2, 0.55, 0.7  # inches: of a bar, above a panel, below all


def drawing(described: ExperimentFigure, found: Findings) -> Drawing:
    """Return how to draw a figure of an experiment."""
    panels = described.panels
    heights = [
        _HEAD + _BAR * (len(bars) + 1) * len(groups)
        for groups, bars in (panel.bars for panel in panels)
    ]
    if panels[0].x_label:
        height, narrow_height = 0.9 + 3.0 * -(-len(panels) // 2), 1.4 + 2.8 * len(panels)
    else:
        pairs = [max(heights[i : i + 2]) for i in range(0, len(heights), 2)]
        height, narrow_height = _FOOT + sum(pairs), _FOOT + 0.5 + sum(heights)

    def draw(figure: Figure, narrow: bool) -> None:
        if panels[0].x_label:
            _draw_lines(figure, panels, found, narrow)
        else:
            _draw_bars(figure, panels, found, heights, narrow)

    return Drawing(
        described.name,
        described.title,
        described.caption,
        described.text(found),
        draw,
        height,
        narrow_height,
    )


def _panels(figure: Figure, number_of: int, narrow: bool, heights: list[float]) -> list[Axes]:
    columns = 1 if narrow or number_of == 1 else 2
    rows = -(-number_of // columns)
    ratios = [max(heights[row * columns : (row + 1) * columns]) for row in range(rows)]
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=ratios)
    panels: list[Axes] = grid.ravel().tolist()
    for spare in panels[number_of:]:
        spare.set_axis_off()
    return panels[:number_of]


def _draw_lines(figure: Figure, panels: Sequence[GridPanel], found: Findings, narrow: bool) -> None:
    shown: dict[str, ChartLine] = {}
    for axes, panel in zip(
        _panels(figure, len(panels), narrow, [1.0] * len(panels)), panels, strict=True
    ):
        lines = panel.lines(found)
        for line in lines:
            axes.plot(line.x, line.y, **_style(line))
            shown[line.name] = line
        if panel.log_x:
            axes.set_xscale("log")
            logarithmic(axes.xaxis)
            sizes = sorted({float(x) for line in lines for x in line.x})
            if len(sizes) <= _MOST_TICKS:
                axes.set_xticks(sizes, [plain(size) for size in sizes])
        if panel.log_y:
            axes.set_yscale("log")
            logarithmic(axes.yaxis)
        else:
            axes.set_ylim(bottom=0)
        for target in panel.targets:
            axes.axhline(target, color=TARGET, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1.5)
            transform = axes.get_yaxis_transform()
            words(axes, (0.01, target), f"target {plain(target)}", (0, 7), transform, TARGET)
        axes.set_title(panel.title)
        axes.set_xlabel(panel.x_label)
    legend(figure, [(_line_key(one), name) for name, one in shown.items()], narrow)


def _style(line: ChartLine) -> dict[str, Any]:
    style: dict[str, Any] = {"color": colour(line.colour)}
    if line.points:
        style |= {"marker": marker(line.colour), "markersize": 5}
    if line.published:
        style |= {"linestyle": _PUBLISHED, "markerfacecolor": SURFACE, "linewidth": 1.3}
    return style


def _line_key(line: ChartLine) -> Line2D:
    found = key(line.colour, _PUBLISHED if line.published else "-", line.points)
    if line.published:
        found.set_markerfacecolor(SURFACE)
    return found


def _draw_bars(
    figure: Figure,
    panels: Sequence[GridPanel],
    found: Findings,
    heights: list[float],
    narrow: bool,
) -> None:
    names: dict[str, int] = {}  # colours
    any_published = False
    for axes, panel in zip(_panels(figure, len(panels), narrow, heights), panels, strict=True):
        groups, bars = panel.bars
        size, ends = len(bars) + 1, [0.0]
        for at, group in enumerate(groups):
            for index, bar in enumerate(bars):
                names.setdefault(bar.title, len(names))
                one = panel.grid.at(found, group, bar)
                value, published = one[panel.metric], one.published(panel.metric)
                any_published |= published is not None
                ends += [end for end in (value, published) if end is not None]
                _draw_bar(axes, value, published, at * size + index, index)
        axes.set_xlim(0.0, 1.3 * (max(ends) or 1.0))
        axes.set_ylim(len(groups) * size - 1.2, -0.8)
        middles = [at * size + (len(bars) - 1) / 2 for at in range(len(groups))]
        axes.set_yticks(middles, [group.title for group in groups])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_title(panel.title)
    entries: list[tuple[Patch | Line2D, str]] = [
        (Patch(color=colour(index), alpha=0.85), name) for name, index in names.items()
    ]
    if any_published:
        entries.append((Line2D([], [], **_MARK), "published"))
    legend(figure, entries, narrow)


def _draw_bar(
    axes: Axes, value: float | None, published: float | None, row: int, index: int
) -> None:
    if value is None:
        words(axes, (0.0, row), "none", (3, 0), colour=MUTED)
    else:
        axes.barh(row, value, height=0.86, color=colour(index), alpha=0.85)
        words(axes, (max(value, published or value), row), number(value), (5, 0), colour=INK)
    if published is not None:
        axes.plot([published], [row], **_MARK)


_MARK: dict[str, Any] = {
    "marker": "D",
    "markersize": 6,
    "color": INK,
    "markerfacecolor": SURFACE,
    "linestyle": "none",
    "zorder": 4,
}
