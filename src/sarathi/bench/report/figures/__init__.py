"""The figures of a report, each drawn where there are data for it.

`by_load.py`, `by_request.py` and `by_token.py` hold the figures of what clients measured,
`iterations.py` that of an engine's log; `figure_parts.py` holds what several figures share, and
what the simulator's figures import.
"""

from __future__ import annotations

from sarathi.bench.report.figures.by_load import capacities, latencies
from sarathi.bench.report.figures.by_request import requests_in_flight, ttft_by_prompt
from sarathi.bench.report.figures.by_token import gaps, tokens
from sarathi.bench.report.figures.iterations import iterations
from sarathi.bench.report.measured import ReportData
from sarathi.bench.report.render import Drawing

_ALL = (capacities, latencies, gaps, tokens, requests_in_flight, ttft_by_prompt, iterations)


def drawings(measured: ReportData) -> list[Drawing]:
    """Return the figures in the order in which they are read."""
    return [drawing for make in _ALL if (drawing := make(measured)) is not None]
