"""Figures with a point for each load: capacities, and latencies against the rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Literal

from matplotlib.axes import Axes

from sarathi.bench.report.chart import (
    INK,
    MUTED,
    SURFACE,
    Dashes,
    Drawing,
    Key,
    Panel,
    colour,
    dots,
    name_rows,
    short,
    words,
)
from sarathi.bench.report.measured import LoadGroup, ReportData
from sarathi.bench.report.table import milliseconds, number, rate, seconds
from sarathi.bench.results import Capacity
from sarathi.telemetry import Distribution, Summary

_RATE = "requests per second"


def capacities(measured: ReportData) -> Drawing | None:
    """Draw the capacity of each server, with its certain range."""
    found = measured.capacity_results
    if not found:
        return None
    ends = [end for one in found for end in (one.capacity, one.low, one.high) if end is not None]
    farthest = max(ends, default=1.0) or 1.0
    names = [short(one.label, True) for one in found]
    if len(measured.targets) > 1:
        limits = [milliseconds(one.tbt_target) for one in found]
        names = [f"{name}\nat most {limit}" for name, limit in zip(names, limits, strict=True)]

    def draw(axes: Axes, narrow: bool) -> None:
        for row, one in enumerate(found):
            _draw(axes, one, row, measured.labels.index(one.label), farthest)
        axes.set_xlim(0, farthest * (1.45 if narrow else 1.25))
        axes.set_ylim(len(found) - 0.4, -0.6)
        name_rows(axes, names)
        axes.spines["left"].set_visible(False)

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
        panels=(Panel(draw, x_label=_RATE),),
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


_P50_DASHES: Dashes = (0, (3, 2))
_WIDE_RANGE = 12.0  # of rates, above which the axis is logarithmic


@dataclass(frozen=True)
class _Latency:
    title: str
    of: Callable[[Summary], Distribution]
    factor: float  # from seconds to the unit of the axis
    unit: str


_LATENCIES = (
    _Latency("Time to first token", lambda summary: summary.ttft, 1, "s"),
    _Latency("Time between tokens", lambda summary: summary.tbt, 1000, "ms"),
)


def latencies(measured: ReportData) -> Drawing | None:
    """Draw TTFT and TBT by rate, or side by side where each label has one load."""
    loads = [load for load in measured.loads if load.summary.ttft.count and not load.stopped]
    if len(loads) < 2:
        return None
    if len({(load.label, load.rate) for load in loads}) > len({load.label for load in loads}):
        return _by_rate(measured, loads)
    return _side_by_side(measured, loads)


def _panels(
    measured: ReportData, draw: Callable[[_Latency, Axes, bool], None], **options: Any
) -> list[Panel]:
    """Return a panel for each latency, with the targets of TBT."""
    targets = {"ms": measured.tbt_targets, "s": ()}
    return [
        Panel(partial(draw, one), f"{one.title} ({one.unit})", targets=targets[one.unit], **options)
        for one in _LATENCIES
    ]


def _by_rate(measured: ReportData, loads: list[LoadGroup]) -> Drawing:
    own = {label: list(found) for label, found in groupby(loads, key=lambda load: load.label)}
    rates = [load.rate for load in loads]
    log_x = min(rates) > 0 and max(rates) > _WIDE_RANGE * min(rates)

    def draw(latency: _Latency, axes: Axes, narrow: bool) -> None:
        for label, found in own.items():
            _draw_label(axes, latency, found, measured.labels.index(label))
        if not log_x:
            axes.set_xlim(0, 1.06 * max(rates) or 1)

    keys = [
        *(Key(label, dots(measured.labels.index(label)) | {"linestyle": "-"}) for label in own),
        Key("P99", {"color": MUTED}),
        Key("P50", {"color": MUTED, "linestyle": _P50_DASHES}),
    ]
    if any(_is_hollow(load) for load in loads):
        hollow = {"color": MUTED, "marker": "o", "linestyle": "none", "mfc": SURFACE}
        keys.append(Key("missed the target, or invalid", hollow))
    return Drawing(
        name="latency-by-rate",
        title="Latency against load",
        caption=(
            "Where a line turns upwards, the server begins to be overloaded. Bars are 95 % "
            "intervals: what other requests of the same kind would have given. Runs that were "
            "stopped are left out: their longest requests had not ended."
        ),
        alternative=(
            f"TTFT and TBT, P50 and P99, against the request rate for {', '.join(own)}; "
            "the figures are in the table of all loads."
        ),
        panels=_panels(measured, draw, x_label=_RATE, log_x=log_x, log_y=True),
        keys=keys,
        height=4.4,
        narrow_height=6.6 + 0.2 * len(own),
    )


def _draw_label(axes: Axes, latency: _Latency, loads: Sequence[LoadGroup], index: int) -> None:
    of = [(load, latency.of(load.summary)) for load in loads]
    for name, dashes, width, size in (("p99", "-", 1.8, 6), ("p50", _P50_DASHES, 1.3, 4)):
        found = [
            (load, latency.factor * value, getattr(distribution, f"{name}_interval"))
            for load, distribution in of
            if (value := getattr(distribution, name))
        ]
        style: dict[str, Any] = {"color": colour(index), "linestyle": dashes, "linewidth": width}
        axes.plot([load.rate for load, _, _ in found], [value for _, value, _ in found], **style)
        for load, value, interval in found:
            _whiskers(axes, (load.rate, value), interval, latency, index, "y")
            face = SURFACE if _is_hollow(load) else colour(index)
            axes.plot([load.rate], [value], **dots(index), mfc=face, ms=size)


def _whiskers(
    axes: Axes,
    point: tuple[float, float],
    interval: tuple[float, float] | None,
    latency: _Latency,
    index: int,
    direction: Literal["x", "y"],
) -> None:
    """Draw the interval of a point, if it has one."""
    if interval is None:
        return
    value = point[direction == "y"]
    low, high = (latency.factor * end for end in interval)
    style: dict[str, Any] = {"ecolor": colour(index), "elinewidth": 1, "capsize": 2.5}
    style[f"{direction}err"] = [[max(0.0, value - low)], [max(0.0, high - value)]]
    axes.errorbar(point[0], point[1], fmt="none", **style)


def _is_hollow(load: LoadGroup) -> bool:
    return load.state in ("missed", "invalid")


def _side_by_side(measured: ReportData, loads: list[LoadGroup]) -> Drawing:
    names = [
        f"{short(load.label, True)}\n{rate(load.rate)}" + (f", {load.state}" if load.state else "")
        for load in loads
    ]

    def draw(latency: _Latency, axes: Axes, narrow: bool) -> None:
        for row, load in enumerate(loads):
            index = measured.labels.index(load.label)
            _draw_row(axes, latency, latency.of(load.summary), row, index)
        axes.set_ylim(len(loads) - 0.4, -0.6)
        name_rows(axes, names)
        axes.margins(x=0.14)

    values = [
        f"{load.label}: TTFT P50 {seconds(load.summary.ttft.p50)}, P99 "
        f"{seconds(load.summary.ttft.p99)}, TBT P50 {milliseconds(load.summary.tbt.p50)}, P99 "
        f"{milliseconds(load.summary.tbt.p99)}"
        for load in loads
    ]
    return Drawing(
        name="latency",
        title="Latencies side by side",
        caption=(
            "Each bar goes from P50 (left) to P99 (right): further to the left is better, and "
            "shorter is steadier. Thin lines are 95 % intervals."
        ),
        alternative="; ".join(values) + ".",
        panels=_panels(measured, draw, log_x=True, targets_text="top"),
        share_y=True,
        height=1.3 + 0.62 * len(loads),
        narrow_height=2.2 + 1.25 * len(loads),
    )


def _draw_row(axes: Axes, latency: _Latency, values: Distribution, row: int, index: int) -> None:
    if values.p50 is None or values.p99 is None or values.p99 <= 0:
        words(axes, (0.02, row), "no value", (0, 0), axes.get_yaxis_transform(), MUTED)
        return
    ends = [(values.p50, values.p50_interval), (values.p99, values.p99_interval)]
    points = [latency.factor * value for value, _ in ends if value > 0]
    axes.plot(points, [row] * len(points), color=colour(index), linewidth=7, alpha=0.35)
    for (value, interval), align in zip(ends, ("right", "left"), strict=True):
        at = latency.factor * value
        if at > 0:
            _whiskers(axes, (at, row), interval, latency, index, "x")
            axes.plot([at], [row], **dots(index), ms=7)
            words(axes, (at, row), number(at), (4 if align == "right" else -4, 12), align=align)
