"""Whether the server keeps up."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sarathi.bench.report.colors import colour
from sarathi.bench.report.figures.figure_parts import key, legend, name, styles
from sarathi.bench.report.measured import ReportData
from sarathi.bench.report.render import Drawing
from sarathi.bench.report.thinning import in_flight

_FEW = 3  # requests that make no picture


def requests_in_flight(measured: ReportData) -> Drawing | None:
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
