"""How much each server can take."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sarathi.bench.number_format import milliseconds, rate
from sarathi.bench.report.colors import INK, MUTED, colour
from sarathi.bench.report.figures.figure_parts import short, words
from sarathi.bench.report.measured import ReportData
from sarathi.bench.report.render import Drawing
from sarathi.bench.results import Capacity


def capacities(measured: ReportData) -> Drawing | None:
    found = measured.capacity_results
    if not found:
        return None
    ends = [end for one in found for end in (one.capacity, one.low, one.high) if end is not None]
    farthest = max(ends, default=1.0) or 1.0

    def name(one: Capacity, narrow: bool) -> str:
        text = short(one.label, True)
        if len(measured.targets) > 1:
            text += f"\nat most {milliseconds(one.tbt_target)}"
        return text

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.add_subplot()
        for row, one in enumerate(found):
            _draw(axes, one, row, measured.labels.index(one.label), farthest)
        axes.set_xlim(0, farthest * (1.45 if narrow else 1.25))
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_yticks(range(len(found)), [name(one, narrow) for one in found])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("requests per second")

    targets = " or ".join(milliseconds(target) for target in measured.targets)
    values = "; ".join(f"{one.label}: {rate(one.capacity)}" for one in found)
    return Drawing(
        name="capacity",
        title="Load within the target",
        caption=(
            f"The highest rate found at which P99 of the time between tokens is at most {targets}. "
            "Lines are the range that is certain: from the highest rate that met the target to the "
            "lowest that missed it, both with 95 % confidence. An arrow means that no rate did so "
            "for certain."
        ),
        alternative=f"Capacity in requests per second. {values}.",
        draw=draw,
        height=1.0 + 0.55 * len(found),
        narrow_height=1.0 + 0.6 * len(found),
    )


def _draw(axes: Axes, one: Capacity, row: int, index: int, farthest: float) -> None:
    if one.capacity is None:
        words(axes, (0.0, row), "no rate met the target", colour=MUTED)
        return
    axes.barh(row, one.capacity, height=0.62, color=colour(index), alpha=0.85)
    low, high = one.low, one.high
    left = 0.0 if low is None else min(low, one.capacity)
    right = one.capacity + 0.1 * farthest if high is None else max(high, one.capacity)
    axes.plot([left, right], [row, row], color=INK, linewidth=1.3)
    ends = ((left, "|" if low is not None else "<"), (right, "|" if high is not None else ">"))
    for at, mark in ends:
        axes.plot([at], [row], marker=mark, color=INK, ms=9 if mark == "|" else 5, clip_on=False)
    words(axes, (right, row), rate(one.capacity), (9, 0), colour=INK)
