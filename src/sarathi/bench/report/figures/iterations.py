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
    predicted = any(line.predicted is not None for line in shown)
    staged = any(len(line.stages) > 1 for line in shown)
    limited = any(line.budget is not None and line.budget_unit == "seconds" for line in shown)

    def draw(axes: Axes, narrow: bool) -> None:
        _draw_durations(axes, shown, predicted, limited)
        axes.set_xlim(shown[0].offset, shown[-1].offset + shown[-1].duration or 1)

    keys = [
        Key("decode tokens", {"color": _DECODE}, box=True),
        Key("prompt tokens", {"color": _PROMPT}, box=True),
        Key("duration", {"color": MUTED, "alpha": 0.45}, box=True),
    ]
    if predicted:
        name = "predicted of a stage" if staged else "predicted"
        keys.append(Key(name, {"color": INK, "linewidth": 1.2}))
    if limited:
        keys.append(Key("budget for prompts", {"color": TARGET, "linewidth": 1.2}))
    return Drawing(
        name="iterations",
        title="Iterations of the engine",
        caption=_caption(lines, shown, longest, predicted, staged),
        alternative=(
            f"Tokens and durations of {len(shown)} iterations; the longest of the log took "
            f"{milliseconds(longest.duration)} for {longest.tokens} tokens."
        ),
        panels=(
            Panel(lambda axes, narrow: _draw_tokens(axes, shown), y_label="tokens"),
            Panel(draw, x_label="time since the log was opened (s)", y_label="ms"),
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


def _draw_tokens(axes: Axes, lines: Sequence[IterationLine]) -> None:
    decodes, prompts = [], []
    for line in lines:
        left, right, split = line.offset, line.offset + line.duration, len(line.decodes)
        if split:
            decodes.append((left, right, 0.0, float(split)))
        if line.tokens > split:
            prompts.append((left, right, float(split), float(line.tokens)))
    boxes(axes, decodes, _DECODE)
    boxes(axes, prompts, _PROMPT)
    axes.set_ylim(0, 1.05 * max(1, *(line.tokens for line in lines)))


def _draw_durations(
    axes: Axes, lines: Sequence[IterationLine], predicted: bool, limited: bool
) -> None:
    spans = [(line.offset, line.offset + line.duration, 1000 * line.duration) for line in lines]
    boxes(axes, [(left, right, 0.0, took) for left, right, took in spans], MUTED, 0.45)
    tops = [took for _, _, took in spans]
    if predicted:
        values = [None if line.predicted is None else 1000 * line.predicted for line in lines]
        _ticks(axes, lines, values, INK)
        tops += [value for value in values if value is not None]
    top = 1.15 * max(tops) or 1.0
    if limited:
        budgets = [
            1000 * line.budget
            if line.budget is not None and line.budget_unit == "seconds" and line.prompts
            else None
            for line in lines
        ]
        _ticks(axes, lines, budgets, TARGET)
    axes.set_ylim(0, top)  # budgets of an idle engine may be far above


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


def _caption(
    lines: Sequence[IterationLine],
    shown: Sequence[IterationLine],
    longest: IterationLine,
    predicted: bool,
    staged: bool,
) -> str:
    text = "Above, the tokens that each iteration computed; below, how long it took"
    text += ", and what the latency model had foreseen." if predicted else "."
    if staged:
        text += " Several are under way at a time, one in each stage of the pipeline."
    if len(shown) < len(lines):
        span = shown[-1].offset + shown[-1].duration - shown[0].offset
        text += (
            f" Of {number(lines[-1].offset - lines[0].offset)} s with {len(lines):,} iterations, "
            f"these are {number(span)} s around the longest, which took "
            f"{milliseconds(longest.duration)}."
        )
    return text
