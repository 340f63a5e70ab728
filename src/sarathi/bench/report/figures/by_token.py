"""Figures of single tokens: the distribution of gaps, and the answers with the longest ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sarathi.bench.number_format import milliseconds
from sarathi.bench.report.colors import INK, STALL, SURFACE, colour
from sarathi.bench.report.figures.figure_parts import (
    Dashes,
    boxes,
    draw_targets,
    key,
    legend,
    logarithmic,
    name,
    styles,
    words,
)
from sarathi.bench.report.measured import ReportData
from sarathi.bench.report.render import Drawing
from sarathi.bench.report.thinning import TAIL, Array, depth, quantiles
from sarathi.bench.results import Run
from sarathi.telemetry import RequestRecord

_LEAST = 0.1  # milliseconds, on a logarithmic axis
_TICKS = {"0": 0.0, "50": 0.5, "90": 0.9, "99": 0.99, "99.9": 0.999}


def gaps(measured: ReportData) -> Drawing | None:
    """Draw the distribution of the times between tokens."""
    curves = {id(run): quantiles(_gaps(run)) for run in measured.shown if run.summary.tbt.count}
    if not curves:
        return None
    shown = [style for style in styles(measured) if id(style[0]) in curves]
    values = np.concatenate([curve[0] for curve in curves.values()])
    together = bool((values < _LEAST).any())

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.add_subplot()
        axes.set_xscale("log")
        left = max(_LEAST, 0.85 * float(values.min()))
        entries = []
        for run, index, dashes in shown:
            x, shares = curves[id(run)]
            x, y = np.concatenate([[left], x.clip(left)]), np.concatenate([[0.0], depth(shares)])
            axes.plot(x, y, color=colour(index), linestyle=dashes, drawstyle="steps-post")
            tbt = run.summary.tbt
            assert tbt.p50 is not None
            assert tbt.p99 is not None
            axes.plot(
                [max(left, 1000 * tbt.p50), max(left, 1000 * tbt.p99)],
                depth([0.5, 0.99]),
                "o",
                color=colour(index),
                markeredgecolor=SURFACE,
                markersize=7,
                zorder=3,
            )
            figures = f"P50 {milliseconds(tbt.p50)}, P99 {milliseconds(tbt.p99)}"
            separator = "\n" if narrow else ": "
            text = f"{name(measured, run, narrow)}{separator}{figures}"
            entries.append((key(index, dashes), text))
        targets = [1000 * target for target in measured.targets]
        axes.set_xlim(left, 1.15 * max(2 * left, float(values.max()), *targets))
        axes.set_ylim(0, TAIL)
        axes.set_yticks([float(depth(share)) for share in _TICKS.values()], list(_TICKS))
        logarithmic(axes.xaxis)
        draw_targets(axes, measured.targets, vertical=True)
        axes.set_xlabel("time between two tokens (ms)")
        axes.set_ylabel("gaps at most this long (%)")
        legend(figure, entries, narrow)

    caption = (
        "Further to the left is better. The upper half is the slowest tenth of all gaps, stretched "
        "so that the tail can be read; dots mark P50 and P99."
    )
    if together:
        caption += " Gaps of tokens that came together are at the left edge."
    return Drawing(
        name="tbt",
        title="Time between tokens",
        caption=caption,
        alternative="Cumulative distribution of TBT. " + _in_words(shown, measured),
        draw=draw,
        height=4.4,
        narrow_height=4.2 + 0.35 * len(shown),
    )


def _gaps(run: Run) -> Array:
    """Return the gaps of complete answers in milliseconds."""
    tokens = [np.diff(r.tokens) for r in run.records if r.failure is None and len(r.tokens) > 1]
    return 1000 * np.concatenate(tokens) if tokens else np.empty(0)


def _in_words(shown: list[tuple[Run, int, Dashes]], measured: ReportData) -> str:
    found = []
    for run, _, _ in shown:
        tbt = run.summary.tbt
        found.append(
            f"{measured.name(run)}: P50 {milliseconds(tbt.p50)}, P99 {milliseconds(tbt.p99)}"
        )
    return "; ".join(found) + "."


_FACTOR = 5  # times the median gap: a stall where no target is known
_MOST_TOKENS = 1200
_MOST_STALLS = 300
_MOST_PANELS = 6


@dataclass(frozen=True)
class _Answer:
    """Times are seconds from when the request was sent."""

    run: Run
    times: Array
    limit: float  # of a gap; longer ones are stalls

    @property
    def gaps(self) -> Array:
        return np.diff(self.times)

    @property
    def stalls(self) -> list[int]:
        """Indices of the tokens before them, the longest first."""
        gaps = self.gaps
        found = np.flatnonzero(gaps > self.limit)
        order = found[np.argsort(-gaps[found], kind="stable")]
        return [int(position) for position in order[:_MOST_STALLS]]

    @property
    def longest(self) -> int:
        return int(np.argmax(self.gaps))


def tokens(measured: ReportData) -> Drawing | None:
    """Draw the answers with the longest gap, token by token."""
    several = len({run.label for run in measured.shown}) > 1
    runs = measured.shown[:_MOST_PANELS] if several else measured.shown[-1:]
    answers = [answer for run in runs if (answer := _worst(run, measured)) is not None]
    if not answers:
        return None

    end = max(float(answer.times[-1]) for answer in answers)

    def draw(figure: Figure, narrow: bool) -> None:
        panels = figure.subplots(len(answers), 1, sharex=True, squeeze=False)[:, 0]
        for axes, answer in zip(panels, answers, strict=True):
            _draw(axes, answer, measured.labels.index(answer.run.label), end)
            axes.set_title(name(measured, answer.run, narrow))
            axes.set_ylabel("tokens")
        panels[-1].set_xlim(0, 1.02 * end or 1)
        panels[-1].set_xlabel("time since the request was sent (s)")

    return Drawing(
        name="tokens",
        title="The worst answer as its reader saw it",
        caption=(
            f"Tokens that had come by each time, for the request with the longest gap"
            f"{_each(answers)}. Shaded are its stalls: gaps above {_limits(measured)}."
        ),
        alternative="; ".join(
            f"{measured.name(answer.run)}: {len(answer.times)} tokens, {len(answer.stalls)} "
            f"stalls, the longest gap {milliseconds(float(answer.gaps.max()))}"
            for answer in answers
        )
        + ".",
        draw=draw,
        height=0.8 + 1.65 * len(answers),
        narrow_height=0.8 + 1.6 * len(answers),
    )


def _each(answers: list[_Answer]) -> str:
    return " of each" if len(answers) > 1 else ""


def _limits(measured: ReportData) -> str:
    if not measured.targets:
        return f"{_FACTOR} times its median gap"
    return "the target" if len(measured.targets) == 1 else "the strictest target"


def _worst(run: Run, measured: ReportData) -> _Answer | None:
    """Find the answer with the longest gap, a complete one if possible."""
    candidates = [record for record in run.records if len(record.tokens) > 1]
    record = max(candidates, key=_badness, default=None)
    if record is None:
        return None
    times = np.array(record.tokens) - record.arrival
    gaps = np.diff(times)
    positive = gaps[gaps > 0]  # tokens that came together say nothing about speed
    usual = float(np.median(positive)) if len(positive) else 0.0
    return _Answer(run, times, measured.target_of(run.label) or _FACTOR * usual)


def _badness(record: RequestRecord) -> tuple[bool, float]:
    return record.failure is None, record.max_gap or 0.0


def _draw(axes: Axes, answer: _Answer, index: int, end: float) -> None:
    times, count = answer.times, len(answer.times)
    top = 1.08 * count
    boxes(axes, [(times[i], times[i + 1], 0, top) for i in answer.stalls], STALL, 0.6)
    kept = _kept(answer)
    axes.plot(times[kept], kept + 1, color=colour(index), drawstyle="steps-post")
    axes.set_ylim(0, top)
    left, right = float(times[answer.longest]), float(times[answer.longest + 1])
    boxes(axes, [(left, right, 0, top)], STALL)
    text = f"{milliseconds(right - left)} without a token"
    # Beside the curve: after its end, or next to the gap, above or below.
    height = (0.13 if answer.longest >= 0.5 * count else 0.87) * top
    if times[-1] < 0.65 * end:
        words(axes, (float(times[-1]), answer.longest + 1), text, (8, 0), colour=INK)
    elif right < 0.6 * end:
        words(axes, (right, height), text, colour=INK)
    else:
        words(axes, (left, height), text, (-6, 0), colour=INK, align="right")


def _kept(answer: _Answer) -> Array:
    """Return indices of the tokens to draw: some of many, and both ends of every stall."""
    count = len(answer.times)
    some = np.linspace(0, count - 1, min(count, _MOST_TOKENS)).round()
    stalls = np.array(answer.stalls, np.int64)
    return np.unique(np.concatenate([some, stalls, stalls + 1])).astype(np.int64)
