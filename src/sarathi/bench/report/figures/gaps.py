"""How the times between tokens are distributed."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from sarathi.bench.number_format import milliseconds
from sarathi.bench.report.colors import SURFACE, colour
from sarathi.bench.report.figures.figure_parts import (
    Dashes,
    draw_targets,
    key,
    legend,
    logarithmic,
    name,
    styles,
)
from sarathi.bench.report.measured import ReportData
from sarathi.bench.report.render import Drawing
from sarathi.bench.report.thinning import TAIL, Array, depth, quantiles
from sarathi.bench.results import Run

_LEAST = 0.1  # milliseconds: what is shorter has no place on a logarithmic axis
_TICKS = {"0": 0.0, "50": 0.5, "90": 0.9, "99": 0.99, "99.9": 0.999}


def gaps(measured: ReportData) -> Drawing | None:
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
    """Milliseconds, of complete answers."""
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
