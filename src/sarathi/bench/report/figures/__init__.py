"""The figures of a report: each is drawn where there are data for it."""

from __future__ import annotations

from sarathi.bench.report.figures.capacities import capacities
from sarathi.bench.report.figures.gaps import gaps
from sarathi.bench.report.figures.in_flight import requests_in_flight
from sarathi.bench.report.figures.iterations import iterations
from sarathi.bench.report.figures.latency_by_rate import latencies
from sarathi.bench.report.figures.ttft_by_prompt import ttft_by_prompt
from sarathi.bench.report.figures.worst_answers import tokens
from sarathi.bench.report.measured import ReportData
from sarathi.bench.report.render import Drawing

_ALL = (capacities, latencies, gaps, tokens, requests_in_flight, ttft_by_prompt, iterations)


def drawings(measured: ReportData) -> list[Drawing]:
    """In the order in which they are read."""
    return [drawing for make in _ALL if (drawing := make(measured)) is not None]
