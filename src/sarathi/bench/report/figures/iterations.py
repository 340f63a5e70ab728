"""The figure of an iteration log: tokens and duration of each iteration."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from sarathi.bench.report.chart import INK, LABELS, MUTED, TARGET, Drawing, Key, Panel, boxes
from sarathi.bench.report.measured import ReportData
from sarathi.bench.report.table import milliseconds, number
from sarathi.telemetry.iteration_log import IterationLine

_SPAN = 10.0  # seconds
_MOST = 600  # iterations, more are too thin to be distinguished
_DECODE, _PROMPT = LABELS[0][0], LABELS[4][0]


def iterations(measured: ReportData) -> Drawing | None:
    """Draw the iterations around the longest one."""
    lines = sorted(measured.iterations, key=lambda line: line.offset)
    if not lines:
        return None
    shown = window(lines)
    longest = max(lines, key=lambda line: line.duration)
    staged = any(len(line.stages) > 1 for line in shown)
    durations = [1000 * line.duration for line in shown]
    predicted = [None if line.predicted is None else 1000 * line.predicted for line in shown]
    limits = [
        1000 * line.budget if line.budget is not None and line.budget_unit == "seconds" else None
        for line in shown
    ]
    has_predictions, has_limits = (any(one is not None for one in of) for of in (predicted, limits))

    def draw_tokens(axes: Axes, narrow: bool) -> None:
        decodes = [len(line.decodes) for line in shown]
        totals = [max(line.tokens, split) for line, split in zip(shown, decodes, strict=True)]
        _bars(axes, shown, [0] * len(shown), decodes, _DECODE)
        _bars(axes, shown, decodes, totals, _PROMPT)
        axes.set_ylim(0, 1.05 * max(1, *(line.tokens for line in shown)))

    def draw_durations(axes: Axes, narrow: bool) -> None:
        _bars(axes, shown, [0] * len(shown), durations, MUTED, 0.45)
        if has_predictions:
            _ticks(axes, shown, predicted, INK)
        if has_limits:
            own = [
                limit if line.prompts else None for line, limit in zip(shown, limits, strict=True)
            ]
            _ticks(axes, shown, own, TARGET)
        # Budgets of an idle engine may be far above.
        top = max(*durations, *(value for value in predicted if value is not None), 0.0)
        axes.set_ylim(0, 1.15 * top or 1.0)
        axes.set_xlim(shown[0].offset, shown[-1].offset + shown[-1].duration or 1)

    keys = [
        Key("decode tokens", {"color": _DECODE}, box=True),
        Key("prompt tokens", {"color": _PROMPT}, box=True),
        Key("duration", {"color": MUTED, "alpha": 0.45}, box=True),
    ]
    if has_predictions:
        name = "predicted of a stage" if staged else "predicted"
        keys.append(Key(name, {"color": INK, "linewidth": 1.2}))
    if has_limits:
        keys.append(Key("budget for prompts", {"color": TARGET, "linewidth": 1.2}))
    caption = "Above, the tokens that each iteration computed; below, how long it took"
    caption += ", and what the latency model had foreseen." if has_predictions else "."
    if staged:
        caption += " Several are under way at a time, one in each stage of the pipeline."
    if len(shown) < len(lines):
        span = shown[-1].offset + shown[-1].duration - shown[0].offset
        caption += (
            f" Of {number(lines[-1].offset - lines[0].offset)} s with {len(lines):,} iterations, "
            f"these are {number(span)} s around the longest, which took "
            f"{milliseconds(longest.duration)}."
        )
    return Drawing(
        name="iterations",
        title="Iterations of the engine",
        caption=caption,
        alternative=(
            f"Tokens and durations of {len(shown)} iterations; the longest of the log took "
            f"{milliseconds(longest.duration)} for {longest.tokens} tokens."
        ),
        panels=(
            Panel(draw_tokens, y_label="tokens"),
            Panel(draw_durations, x_label="time since the log was opened (s)", y_label="ms"),
        ),
        keys=keys,
        stacked=True,
        height=4.8,
        narrow_height=5.0,
    )


def window(lines: Sequence[IterationLine]) -> Sequence[IterationLine]:
    """Return all lines of a short log, or those around the longest iteration of a long one.

    Args:
        lines: by their offsets, at least one.
    """
    middle = max(range(len(lines)), key=lambda i: lines[i].duration)
    first = last = middle

    def fits(first: int, last: int) -> bool:
        if first < 0 or last >= len(lines) or last - first >= _MOST:
            return False
        return lines[last].offset + lines[last].duration - lines[first].offset <= _SPAN

    while True:  # grow on the side that is nearer in time
        before, after = fits(first - 1, last), fits(first, last + 1)
        if not (before or after):
            return lines[first : last + 1]
        centre = lines[middle].offset
        if before and after:
            before = centre - lines[first - 1].offset <= lines[last + 1].offset - centre
        first, last = (first - 1, last) if before else (first, last + 1)


def _bars(
    axes: Axes,
    lines: Sequence[IterationLine],
    lows: Sequence[float],
    highs: Sequence[float],
    colour: str,
    alpha: float = 1.0,
) -> None:
    """Draw a box over each iteration, from low to high."""
    corners = [
        (line.offset, line.offset + line.duration, low, high)
        for line, low, high in zip(lines, lows, highs, strict=True)
        if high > low
    ]
    boxes(axes, corners, colour, alpha)


def _ticks(
    axes: Axes, lines: Sequence[IterationLine], values: Sequence[float | None], colour: str
) -> None:
    """Draw a short line over each iteration that has a value."""
    x: list[float] = []
    y: list[float] = []
    for line, value in zip(lines, values, strict=True):
        if value is not None:
            x += [line.offset, line.offset + line.duration, float("nan")]
            y += [value, value, float("nan")]
    axes.plot(x, y, color=colour, linewidth=1.2, solid_capstyle="butt")
