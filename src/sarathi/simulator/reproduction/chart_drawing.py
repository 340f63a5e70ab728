"""Charts drawn in the style of the other reports. Imports the plotting library."""

from __future__ import annotations

from functools import partial
from typing import Any

from matplotlib.axes import Axes

from sarathi.bench.report.chart import (
    INK,
    MUTED,
    SURFACE,
    Drawing,
    Key,
    Panel,
    colour,
    dots,
    name_rows,
    words,
)
from sarathi.bench.report.table import number, plain
from sarathi.simulator.reproduction.experiment import ExperimentResult, Figure, GridPanel

_MOST_TICKS = 8  # that are labelled one by one
_BAR, _HEAD, _FOOT = 0.2, 0.55, 0.7  # inches: of a bar, above a panel, below all
_MARK: dict[str, Any] = {
    "marker": "D",
    "markersize": 6,
    "color": INK,
    "markerfacecolor": SURFACE,
    "linestyle": "none",
    "zorder": 4,
}
_DASHED: dict[str, Any] = {"linestyle": (0, (4, 2.5)), "markerfacecolor": SURFACE, "linewidth": 1.3}


def drawing(described: Figure, found: ExperimentResult) -> Drawing:
    """Return how to draw a figure of an experiment."""
    text = (described.name, described.title, described.caption, described.text(found))
    panels = described.panels
    if panels[0].x_label:
        rows = -(-len(panels) // 2)
        keys: dict[str, Key] = {}
        shown = [_line_panel(panel, found, keys) for panel in panels]
        heights = 0.9 + 3.0 * rows, 1.4 + 2.8 * len(panels)
        return Drawing(*text, shown, *heights, list(keys.values()))
    titles = dict.fromkeys(bar.title for panel in panels for bar in panel.bars[1])
    boxes = [
        Key(title, {"color": colour(index), "alpha": 0.85}, box=True)
        for index, title in enumerate(titles)
    ]
    shown = [_bar_panel(panel, found) for panel in panels]
    if any(one.published(panel.metric) for panel in panels for one in panel.measured(found)):
        boxes.append(Key("published", _MARK))
    tall = [panel.height for panel in shown]
    pairs = [max(tall[i : i + 2]) for i in range(0, len(tall), 2)]
    return Drawing(*text, shown, _FOOT + sum(pairs), _FOOT + 0.5 + sum(tall), boxes)


def _line_panel(panel: GridPanel, found: ExperimentResult, keys: dict[str, Key]) -> Panel:
    """Return the panel, and add its lines to the keys of the legend."""
    ours, published = [], []
    rows = panel.grid.rows
    for index, row in enumerate(rows):
        points = {
            next(iter(column.where.values()), 0.0): panel.grid.at(found, row, column)
            for column in panel.grid.columns
        }
        if panel.curve is not None:
            [point] = points.values()
            ours.append((row.title, {"color": colour(index)}, *panel.curve(point.result)))
            continue
        values = [panel.scale * (one[panel.metric] or 0.0) for one in points.values()]
        ours.append((row.title, _marks(index), list(points), values))
        known = {
            x: panel.scale * value
            for x, one in points.items()
            if (value := one.published(panel.metric)) is not None
        }
        if known:
            name, of = (f"{row.title}, published", index) if len(rows) > 1 else ("published", 1)
            published.append((name, _marks(of) | _DASHED, list(known), list(known.values())))
    lines = [*ours, *published]
    keys.update((name, Key(name, style)) for name, style, _, _ in lines)
    sizes = sorted({float(value) for _, _, x, _ in lines for value in x})

    def draw(axes: Axes, narrow: bool) -> None:
        for _, style, x, y in lines:
            axes.plot(x, y, **style)
        if not panel.log_y:
            axes.set_ylim(bottom=0)

    return Panel(
        draw,
        panel.title,
        panel.x_label,
        log_x=panel.log_x,
        log_y=panel.log_y,
        x_ticks=sizes if panel.log_x and len(sizes) <= _MOST_TICKS else (),
        targets=[(target, f"target {plain(target)}") for target in panel.targets],
    )


def _marks(index: int) -> dict[str, Any]:
    return dots(index) | {"linestyle": "-", "markersize": 5}


def _bar_panel(panel: GridPanel, found: ExperimentResult) -> Panel:
    groups, bars = panel.bars
    return Panel(
        partial(_draw_bars, panel, found),
        panel.title,
        height=_HEAD + _BAR * (len(bars) + 1) * len(groups),
    )


def _draw_bars(panel: GridPanel, found: ExperimentResult, axes: Axes, narrow: bool) -> None:
    groups, bars = panel.bars
    size, ends = len(bars) + 1, [0.0]
    for position, one in enumerate(panel.measured(found)):
        group, index = divmod(position, len(bars))
        value, published, row = one[panel.metric], one.published(panel.metric), group * size + index
        ends += [end for end in (value, published) if end is not None]
        if value is None:
            words(axes, (0.0, row), "none", (3, 0), colour=MUTED)
        else:
            axes.barh(row, value, height=0.86, color=colour(index), alpha=0.85)
            words(axes, (max(value, published or value), row), number(value), (5, 0), colour=INK)
        if published is not None:
            axes.plot([published], [row], **_MARK)
    axes.set_xlim(0.0, 1.3 * (max(ends) or 1.0))
    axes.set_ylim(len(groups) * size - 1.2, -0.8)
    name_rows(axes, [group.title for group in groups], size, (len(bars) - 1) / 2)
    axes.spines["left"].set_visible(False)
