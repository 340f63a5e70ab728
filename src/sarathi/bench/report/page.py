"""The HTML page: its sections, and the template that renders them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from sarathi.bench.report.colors import LABELS, definitions
from sarathi.bench.report.measured import ReportData
from sarathi.bench.report.notes import Alert, Fact, alerts, facts
from sarathi.bench.report.render import Rendered
from sarathi.bench.report.result_tables import (
    capacity_table,
    comparison_table,
    conduct_table,
    latency_table,
    points_table,
    simulation_table,
    throughput_table,
)
from sarathi.bench.report.table import Table

_FEW = 4  # loads, whose latencies are best seen first
_TERMS = {
    "TTFT": "Time to first token, from sending a request.",
    "TBT": "Time between two consecutive tokens of an answer, which has one gap less than tokens. "
    "The longest of these gaps is what a reader feels as a stall.",
    "Scheduling delay": "From arrival to the iteration that first computes something of the "
    "request, where the server reports it.",
    "P50, P90, P99": "The least value that so many percent of all do not exceed.",
    "95 % interval": "A bootstrap over blocks of adjacent requests: what other requests would "
    "have given on the same machine in the same state.",
    "Rate": "Requests are sent at their times, whether or not earlier ones have ended.",
}


@dataclass(frozen=True)
class Section:
    """A part of a page, under its heading."""

    title: str
    first: Sequence[Table]  # before the figures
    figures: Sequence[Rendered]
    tables: Sequence[Table]  # after them
    texts: Sequence[str] = ()  # paragraphs below the heading
    notes: Sequence[str] = ()  # at the end


def page(measured: ReportData, figures: Sequence[Rendered], title: str) -> str:
    """Return the report as HTML that needs no other file."""
    return html(
        title, alerts(measured), facts(measured), _sections(measured, figures), terms=_TERMS
    )


def html(
    title: str,
    alerts: Sequence[Alert],
    facts: Sequence[Fact],
    sections: Sequence[Section],
    terms: Mapping[str, str],
) -> str:
    """Render any page of this look as HTML that needs no other file.

    Args:
        terms: definitions of the terms of the page.
    """
    loader = PackageLoader("sarathi.bench.report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html.j2").render(
        title=title,
        colours=definitions,
        num_colours=len(LABELS),
        alerts=alerts,
        facts=facts,
        sections=sections,
        terms=terms,
    )


def _sections(measured: ReportData, figures: Sequence[Rendered]) -> list[Section]:
    """Return the sections that have any content."""

    def of(*names: str) -> list[Rendered]:
        return [figure for figure in figures if figure.drawing.name in names]

    def those(*tables: Table | None) -> list[Table]:
        return [table for table in tables if table is not None]

    search, engine = of("capacity"), of("iterations")
    others = [figure for figure in figures if figure not in (*search, *engine)]
    latencies, comparison = latency_table(measured), comparison_table(measured)
    points = points_table(measured.capacity_results, measured.labels)
    first = comparison is None and len(measured.loads) <= _FEW
    tables = None if first else latencies, throughput_table(measured), points
    found = [
        Section("Capacity", [], search, those(capacity_table(measured))),
        Section("Latency", those(comparison, latencies if first else None), others, []),
        Section("Inside the engine", [], engine, []),
        Section("Simulated hardware", those(simulation_table(measured)), [], []),
        Section("All loads", those(*tables, conduct_table(measured)), [], []),
    ]
    return [one for one in found if one.first or one.figures or one.tables]
