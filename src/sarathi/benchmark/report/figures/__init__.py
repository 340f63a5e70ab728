"""The figures of a report: each is drawn where there are data for it."""

from __future__ import annotations

from sarathi.benchmark.report.figures.capacity import capacities
from sarathi.benchmark.report.figures.gaps import gaps
from sarathi.benchmark.report.figures.in_flight import requests_in_flight
from sarathi.benchmark.report.figures.iterations import iterations
from sarathi.benchmark.report.figures.prompts import ttft_by_prompt
from sarathi.benchmark.report.figures.rates import latencies
from sarathi.benchmark.report.figures.tokens import tokens
from sarathi.benchmark.report.measured import Measured
from sarathi.benchmark.report.render import Drawing

_ALL = (capacities, latencies, gaps, tokens, requests_in_flight, ttft_by_prompt, iterations)


def drawings(measured: Measured) -> list[Drawing]:
    """In the order in which they are read."""
    return [drawing for make in _ALL if (drawing := make(measured)) is not None]
