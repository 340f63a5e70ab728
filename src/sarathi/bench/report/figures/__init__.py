"""The figures of a report, each drawn where there are data for it.

`by_load.py` and `by_run.py` hold the figures of what clients measured, `iterations.py` that of an
engine's log; `chart.py` beside this package draws them.
"""

from __future__ import annotations

from sarathi.bench.report.chart import Drawing
from sarathi.bench.report.figures.by_load import capacities, latencies
from sarathi.bench.report.figures.by_run import gaps, requests_in_flight, tokens, ttft_by_prompt
from sarathi.bench.report.figures.iterations import iterations
from sarathi.bench.report.measured import ReportData

_ALL = (capacities, latencies, gaps, tokens, requests_in_flight, ttft_by_prompt, iterations)


def drawings(measured: ReportData) -> list[Drawing]:
    """Return the figures in the order in which they are read."""
    return [drawing for make in _ALL if (drawing := make(measured)) is not None]
