"""Figures of the runs that are compared: gaps between tokens, worst answers, and requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sarathi.bench.report import chart
from sarathi.bench.report.measured import ReportData
from sarathi.bench.report.table import milliseconds
from sarathi.bench.results import Run

_DASHES: tuple[chart.Dashes, ...] = (
    "-",
    (0, (6, 2)),
    (0, (2, 1.5)),
    (0, (6, 2, 1, 2)),
    (0, (1, 2.5)),
    (0, (10, 3)),
)


def _lines(measured: ReportData) -> list[tuple[Run, chart.Key]]:
    """Return the shown runs, each with its line: colours by label, dashes by run or label."""
    one_label = len({run.label for run in measured.shown}) == 1
    found = []
    for position, run in enumerate(measured.shown):
        index = measured.labels.index(run.label)
        of_dashes = position if one_label else index // len(chart.LABELS)  # colours repeat
        style = {"color": chart.colour(index), "linestyle": _DASHES[of_dashes % len(_DASHES)]}
        found.append((run, chart.Key(run.label, style, measured.rest_of_name(run))))
    return found


def _compared_runs(measured: ReportData) -> Sequence[Run]:
    """Return the shown runs of several labels, or the last of one label's."""
    several = len({run.label for run in measured.shown}) > 1
    return measured.shown if several else measured.shown[-1:]


_LEAST = 0.1  # milliseconds, on a logarithmic axis
_TICKS = {"0": 0.0, "50": 0.5, "90": 0.9, "99": 0.99, "99.9": 0.999}


def gaps(measured: ReportData) -> chart.Drawing | None:
    """Draw the distribution of the times between tokens."""
    shown = [
        (run, key, *chart.quantiles(_gaps(run)))
        for run, key in _lines(measured)
        if run.summary.tbt.count
    ]
    if not shown:
        return None
    values = np.concatenate([x for _, _, x, _ in shown])
    tails = [
        f"P50 {milliseconds(run.summary.tbt.p50)}, P99 {milliseconds(run.summary.tbt.p99)}"
        for run, *_ in shown
    ]

    def draw(axes: Axes, narrow: bool) -> None:
        left = max(_LEAST, 0.85 * float(values.min()))
        for run, key, x, shares in shown:
            x = np.concatenate([[left], x.clip(left)])
            y = np.concatenate([[0.0], chart.depth(shares)])
            axes.plot(x, y, **key.style, drawstyle="steps-post")
            tbt = run.summary.tbt
            axes.plot(
                [max(left, 1000 * (value or 0.0)) for value in (tbt.p50, tbt.p99)],
                chart.depth([0.5, 0.99]),
                "o",
                color=key.style["color"],
                markeredgecolor=chart.SURFACE,
                markersize=7,
                zorder=3,
            )
        targets = [target for target, _ in measured.tbt_targets]
        axes.set_xlim(left, 1.15 * max(2 * left, float(values.max()), *targets))
        axes.set_ylim(0, chart.TAIL)
        axes.set_yticks([float(chart.depth(share)) for share in _TICKS.values()], list(_TICKS))

    caption = (
        "Further to the left is better. The upper half is the slowest tenth of all gaps, stretched "
        "so that the tail can be read; dots mark P50 and P99."
    )
    if (values < _LEAST).any():
        caption += " Gaps of tokens that came together are at the left edge."
    names = [measured.name(run) for run, *_ in shown]
    listed = "; ".join(f"{name}: {tail}" for name, tail in zip(names, tails, strict=True))
    return chart.Drawing(
        name="tbt",
        title="Time between tokens",
        caption=caption,
        alternative=f"Cumulative distribution of TBT. {listed}.",
        panels=[
            chart.Panel(
                draw,
                x_label="time between two tokens (ms)",
                y_label="gaps at most this long (%)",
                log_x=True,
                targets=measured.tbt_targets,
                targets_text="top",
            )
        ],
        keys=[replace(key, detail=tail) for (_, key, *_), tail in zip(shown, tails, strict=True)],
        height=4.4,
        narrow_height=4.2 + 0.35 * len(shown),
    )


def _gaps(run: Run) -> chart.Array:
    """Return the gaps of complete answers in milliseconds."""
    tokens = [np.diff(r.tokens) for r in run.records if r.failure is None and len(r.tokens) > 1]
    return 1000 * np.concatenate(tokens) if tokens else np.empty(0)


_FACTOR = 5  # times the median gap: a stall where no target is known
_MOST_TOKENS = 1200
_MOST_STALLS = 300
_MOST_PANELS = 6


@dataclass(frozen=True)
class _Answer:
    """Times are seconds from when the request was sent."""

    run: Run
    times: chart.Array
    limit: float  # of a gap; longer ones are stalls

    @cached_property
    def gaps(self) -> chart.Array:
        return np.diff(self.times)

    @cached_property
    def stalls(self) -> npt.NDArray[np.int64]:
        """Indices of the tokens before them, the longest first."""
        longest = np.argsort(-self.gaps, kind="stable")
        return longest[self.gaps[longest] > self.limit][:_MOST_STALLS]


def tokens(measured: ReportData) -> chart.Drawing | None:
    """Draw the answers with the longest gap, token by token."""
    runs = _compared_runs(measured)[:_MOST_PANELS]
    answers = [answer for run in runs if (answer := _worst(run, measured)) is not None]
    if not answers:
        return None
    end = max(float(answer.times[-1]) for answer in answers)

    def draw(answer: _Answer, axes: Axes, narrow: bool) -> None:
        run = answer.run
        _draw(axes, answer, measured.labels.index(run.label), end)
        axes.set_xlim(0, 1.02 * end or 1)
        axes.set_title(chart.short(run.label, narrow) + measured.rest_of_name(run))

    of_each = " of each" if len(answers) > 1 else ""
    limits = (f"{_FACTOR} times its median gap", "the target", "the strictest target")
    listed = "; ".join(
        f"{measured.name(answer.run)}: {len(answer.times)} tokens, {len(answer.stalls)} "
        f"stalls, the longest gap {milliseconds(float(answer.gaps.max()))}"
        for answer in answers
    )
    return chart.Drawing(
        name="tokens",
        title="The worst answer as its reader saw it",
        caption=(
            f"Tokens that had come by each time, for the request with the longest gap{of_each}. "
            f"Shaded are its stalls: gaps above {limits[min(len(measured.targets), 2)]}."
        ),
        alternative=f"{listed}.",
        panels=[
            chart.Panel(
                partial(draw, answer),
                x_label="time since the request was sent (s)" if answer is answers[-1] else "",
                y_label="tokens",
            )
            for answer in answers
        ],
        stacked=True,
        height=0.8 + 1.65 * len(answers),
        narrow_height=0.8 + 1.6 * len(answers),
    )


def _worst(run: Run, measured: ReportData) -> _Answer | None:
    """Find the answer with the longest gap, a complete one if possible."""
    candidates = [record for record in run.records if len(record.tokens) > 1]
    if not candidates:
        return None
    record = max(candidates, key=lambda one: (one.failure is None, one.max_gap or 0.0))
    times = np.array(record.tokens) - record.arrival
    gaps = np.diff(times)
    positive = gaps[gaps > 0]  # tokens that came together say nothing about speed
    usual = float(np.median(positive)) if len(positive) else 0.0
    return _Answer(run, times, measured.target_of(run.label) or _FACTOR * usual)


def _draw(axes: Axes, answer: _Answer, index: int, end: float) -> None:
    times, stalls, count = answer.times, answer.stalls, len(answer.times)
    top = 1.08 * count
    chart.boxes(axes, [(times[i], times[i + 1], 0, top) for i in stalls], chart.STALL, 0.6)
    # Some tokens of many, and both ends of every stall.
    some = np.linspace(0, count - 1, min(count, _MOST_TOKENS)).round().astype(np.int64)
    kept = np.unique(np.concatenate([some, stalls, stalls + 1]))
    axes.plot(times[kept], kept + 1, color=chart.colour(index), drawstyle="steps-post")
    axes.set_ylim(0, top)
    longest = int(np.argmax(answer.gaps))
    left, right = float(times[longest]), float(times[longest + 1])
    chart.boxes(axes, [(left, right, 0, top)], chart.STALL)
    text = f"{milliseconds(right - left)} without a token"
    # Beside the curve: after its end, or next to the gap, above or below.
    height = (0.13 if longest >= 0.5 * count else 0.87) * top
    if times[-1] < 0.65 * end:
        chart.words(axes, (float(times[-1]), longest + 1), text, (8, 0), colour=chart.INK)
    elif right < 0.6 * end:
        chart.words(axes, (right, height), text, colour=chart.INK)
    else:
        chart.words(axes, (left, height), text, (-6, 0), colour=chart.INK, align="right")


def requests_in_flight(measured: ReportData) -> chart.Drawing | None:
    """Draw the number of open requests over time: whether the server keeps up."""
    shown = [
        (run, key, *chart.in_flight(run.records))
        for run, key in _lines(measured)
        if len(run.records) > 2
    ]
    if not shown:
        return None

    def draw(axes: Axes, narrow: bool) -> None:
        for _, key, times, counts in shown:
            axes.plot(times - times[0], counts, **key.style, linewidth=1.5, drawstyle="steps-post")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))

    peaks = [f"{measured.name(run)}: {counts.max():.0f}" for run, _, _, counts in shown]
    return chart.Drawing(
        name="in-flight",
        title="Requests in flight",
        caption=(
            "Requests that were sent and whose answers had not ended. A line that climbs for as "
            "long as requests are sent means that the server does not keep up."
        ),
        alternative=f"Requests in flight over time; at most, {'; '.join(peaks)}.",
        panels=(
            chart.Panel(
                draw, "", "time since the first measured request (s)", "requests in flight"
            ),
        ),
        keys=[key for _, key, _, _ in shown] if len(shown) > 1 else (),
        height=3.0,
        narrow_height=2.9 + 0.2 * len(shown),
    )


_MOST = 300  # requests of one run
_SPREAD = 1.2  # of prompt lengths, below which there is nothing to see


def ttft_by_prompt(measured: ReportData) -> chart.Drawing | None:
    """Draw the TTFT of each request by the length of its prompt."""
    points = [(run, found) for run in _compared_runs(measured) if len(found := _points(run)) > 2]
    lengths = [length for _, found in points for length, _ in found]
    if not lengths or max(lengths) < _SPREAD * min(lengths):
        return None

    styles = [chart.dots(measured.labels.index(run.label)) for run, _ in points]

    def draw(axes: Axes, narrow: bool) -> None:
        for (_, found), style in zip(points, styles, strict=True):
            axes.plot(*zip(*found, strict=True), **style, ms=4, alpha=0.55, markeredgewidth=0)

    keys = [
        chart.Key(run.label, style, measured.rest_of_name(run))
        for (run, _), style in zip(points, styles, strict=True)
    ]
    thinned = any(len(found) == _MOST for _, found in points)
    return chart.Drawing(
        name="ttft-by-prompt",
        title="Time to first token against prompt length",
        caption=(
            "Each point is a request. Computing a prompt takes time, which makes the lower edge; "
            "what is above it is waiting."
            + (f" Of longer runs, {_MOST} requests are drawn, evenly by TTFT." if thinned else "")
        ),
        alternative=f"Scatter plot of TTFT for prompts of {min(lengths)} to {max(lengths)} tokens.",
        panels=[
            chart.Panel(
                draw, "", "prompt (tokens)", "time to first token (s)", log_x=True, log_y=True
            )
        ],
        keys=keys if len(keys) > 1 else (),
        height=3.8,
        narrow_height=3.7 + 0.2 * len(points),
    )


def _points(run: Run) -> list[tuple[int, float]]:
    found = [
        (record.prompt_tokens, record.ttft)
        for record in run.records
        if record.failure is None and record.prompt_tokens and record.ttft
    ]
    return [found[i] for i in chart.spread([ttft for _, ttft in found], _MOST)]
