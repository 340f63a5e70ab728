"""Figures with a point for each request: those in flight, and TTFT by prompt length."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sarathi.bench.report.colors import colour, marker
from sarathi.bench.report.figures.figure_parts import key, legend, logarithmic, name, styles
from sarathi.bench.report.measured import ReportData
from sarathi.bench.report.render import Drawing
from sarathi.bench.report.thinning import in_flight, spread
from sarathi.bench.results import Run

_FEW = 3  # requests are too few for a figure


def requests_in_flight(measured: ReportData) -> Drawing | None:
    """Draw the number of open requests over time: whether the server keeps up."""
    shown = [style for style in styles(measured) if len(style[0].records) >= _FEW]
    if not shown:
        return None
    curves = [in_flight(run.records) for run, _, _ in shown]

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.add_subplot()
        entries = []
        for (run, index, dashes), (times, counts) in zip(shown, curves, strict=True):
            axes.plot(
                times - times[0],
                counts,
                color=colour(index),
                linestyle=dashes,
                linewidth=1.5,
                drawstyle="steps-post",
            )
            entries.append((key(index, dashes), name(measured, run, narrow)))
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("time since the first measured request (s)")
        axes.set_ylabel("requests in flight")
        if len(entries) > 1:
            legend(figure, entries, narrow)

    peaks = [f"{measured.name(s[0])}: {c[1].max():.0f}" for s, c in zip(shown, curves, strict=True)]
    return Drawing(
        name="in-flight",
        title="Requests in flight",
        caption=(
            "Requests that were sent and whose answers had not ended. A line that climbs for as "
            "long as requests are sent means that the server does not keep up."
        ),
        alternative=f"Requests in flight over time; at most, {'; '.join(peaks)}.",
        draw=draw,
        height=3.0,
        narrow_height=2.9 + 0.2 * len(shown),
    )


_MOST = 300  # requests of one run
_SPREAD = 1.2  # of prompt lengths, below which there is nothing to see


def ttft_by_prompt(measured: ReportData) -> Drawing | None:
    """Draw the TTFT of each request by the length of its prompt."""
    several = len({run.label for run in measured.shown}) > 1
    runs = measured.shown if several else measured.shown[-1:]
    points = [(run, found) for run in runs if len(found := _points(run)) > 2]
    lengths = [length for _, found in points for length, _ in found]
    if not lengths or max(lengths) < _SPREAD * min(lengths):
        return None

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.set_yscale("log")
        for run, found in points:
            index = measured.labels.index(run.label)
            axes.plot(
                [length for length, _ in found],
                [ttft for _, ttft in found],
                marker(index),
                color=colour(index),
                markersize=4,
                alpha=0.55,
                markeredgewidth=0,
            )
        logarithmic(axes.xaxis)
        logarithmic(axes.yaxis)
        axes.set_xlabel("prompt (tokens)")
        axes.set_ylabel("time to first token (s)")
        if len(points) > 1:
            entries = []
            for run, _ in points:
                handle = key(measured.labels.index(run.label), with_marker=True)
                handle.set_linestyle("none")
                entries.append((handle, name(measured, run, narrow)))
            legend(figure, entries, narrow)

    thinned = any(len(found) == _MOST for _, found in points)
    return Drawing(
        name="ttft-by-prompt",
        title="Time to first token against prompt length",
        caption=(
            "Each point is a request. Computing a prompt takes time, which makes the lower edge; "
            "what is above it is waiting."
            + (f" Of longer runs, {_MOST} requests are drawn, evenly by TTFT." if thinned else "")
        ),
        alternative=f"Scatter plot of TTFT for prompts of {min(lengths)} to {max(lengths)} tokens.",
        draw=draw,
        height=3.8,
        narrow_height=3.7 + 0.2 * len(points),
    )


def _points(run: Run) -> list[tuple[int, float]]:
    found = [
        (record.prompt_tokens, record.ttft)
        for record in run.records
        if record.failure is None and record.prompt_tokens and record.ttft
    ]
    return [found[i] for i in spread([ttft for _, ttft in found], _MOST)]
