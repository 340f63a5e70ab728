"""Charts drawn in the style of the other reports. Imports the plotting library."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sarathi.bench.number_format import number, plain
from sarathi.bench.report.colors import INK, MUTED, SURFACE, TARGET, colour, marker
from sarathi.bench.report.figures.figure_parts import Dashes, key, legend, logarithmic, words
from sarathi.bench.report.render import Drawing
from sarathi.simulator.reproduction.chart import Bar, BarPanel, Chart, Panel, Series

_PUBLISHED: Dashes = (0, (4, 2.5))
_MOST_TICKS = 8  # that are labelled one by one
_BAR, _HEAD, _FOOT = 0.2, 0.55, 0.7  # inches: of a bar, above a panel, below all


def drawing(chart: Chart) -> Drawing:
    """Return how to draw a chart."""
    bars = [panel for panel in chart.panels if isinstance(panel, BarPanel)]
    lines = [panel for panel in chart.panels if isinstance(panel, Panel)]

    def draw(figure: Figure, narrow: bool) -> None:
        if bars:
            _draw_bars(figure, bars, narrow)
        else:
            _draw_lines(figure, lines, narrow)

    if bars:
        heights = [_HEAD + _BAR * (len(p.series) + 1) * len(p.groups) for p in bars]
        pairs = [max(heights[i : i + 2]) for i in range(0, len(heights), 2)]
        height, narrow_height = _FOOT + sum(pairs), _FOOT + 0.5 + sum(heights)
    else:
        height = 0.9 + 3.0 * -(-len(lines) // 2)
        narrow_height = 1.4 + 2.8 * len(lines)
    return Drawing(
        chart.name, chart.title, chart.caption, chart.alternative, draw, height, narrow_height
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


def _draw_lines(figure: Figure, panels: list[Panel], narrow: bool) -> None:
    for axes, panel in zip(
        _panels(figure, len(panels), narrow, [1.0] * len(panels)), panels, strict=True
    ):
        for series in panel.series:
            axes.plot(series.x, series.y, **_style(series))
        if panel.log_x:
            axes.set_xscale("log")
            logarithmic(axes.xaxis)
            sizes = sorted({float(x) for series in panel.series for x in series.x})
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
    shown = {series.name: series for panel in panels for series in panel.series}
    legend(figure, [(_line_key(one), name) for name, one in shown.items()], narrow)


def _style(series: Series) -> dict[str, Any]:
    style: dict[str, Any] = {"color": colour(series.colour)}
    if series.points:
        style |= {"marker": marker(series.colour), "markersize": 5}
    if series.published:
        style |= {"linestyle": _PUBLISHED, "markerfacecolor": SURFACE, "linewidth": 1.3}
    return style


def _line_key(series: Series) -> Line2D:
    found = key(series.colour, _PUBLISHED if series.published else "-", series.points)
    if series.published:
        found.set_markerfacecolor(SURFACE)
    return found


def _draw_bars(figure: Figure, panels: list[BarPanel], narrow: bool) -> None:
    heights = [_HEAD + _BAR * (len(p.series) + 1) * len(p.groups) for p in panels]
    for axes, panel in zip(_panels(figure, len(panels), narrow, heights), panels, strict=True):
        _draw_bar_panel(axes, panel)
    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    entries: list[tuple[Patch | Line2D, str]] = [
        (Patch(color=colour(names.index(name)), alpha=0.85), name) for name in names
    ]
    bars = [bar for panel in panels for group in panel.bars for bar in group]
    if any(bar.published is not None for bar in bars):
        entries.append((_mark(), "published"))
    legend(figure, entries, narrow)


def _draw_bar_panel(axes: Axes, panel: BarPanel) -> None:
    size = len(panel.series)
    ends = [
        end
        for group in panel.bars
        for bar in group
        for end in (bar.value, bar.published)
        if end is not None
    ]
    farthest, nearest = max(ends, default=1.0), min(ends, default=1.0)
    left = nearest / 2 if panel.log else 0.0
    if panel.log:
        axes.set_xscale("log")
    for at, group in enumerate(panel.bars):
        for index, bar in enumerate(group):
            row = at * (size + 1) + index
            _draw_bar(axes, bar, row, index, left)
    axes.set_xlim(left, left * (farthest / left) ** 1.3 if panel.log else 1.3 * farthest)
    if panel.log:
        logarithmic(axes.xaxis)
    axes.set_ylim(len(panel.groups) * (size + 1) - 1.2, -0.8)
    middles = [at * (size + 1) + (size - 1) / 2 for at in range(len(panel.groups))]
    axes.set_yticks(middles, list(panel.groups))
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_title(panel.title)


def _draw_bar(axes: Axes, bar: Bar, row: int, index: int, left: float) -> None:
    if bar.value is None:
        words(axes, (left, row), bar.text or "none", (3, 0), colour=MUTED)
    else:
        axes.barh(row, bar.value - left, left=left, height=0.86, color=colour(index), alpha=0.85)
    if bar.published is not None:
        axes.plot([bar.published], [row], **_MARK)
    if bar.value is not None:
        end = max(bar.value, bar.published or bar.value)
        words(axes, (end, row), bar.text or number(bar.value), (5, 0), colour=INK)


_MARK: dict[str, Any] = {
    "marker": "D",
    "markersize": 6,
    "color": INK,
    "markerfacecolor": SURFACE,
    "linestyle": "none",
    "zorder": 4,
}


def _mark() -> Line2D:
    return Line2D([], [], **_MARK)
