"""The page itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from sarathi.bench.report.colors import variable
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
from sarathi.bench.report.stylesheet import stylesheet
from sarathi.bench.report.table import Table
from sarathi.bench.report.template import TEMPLATE

_FEW = 4  # loads, whose latencies are best seen first
_TERMS = {
    "TTFT": "Time to first token, from sending a request.",
    "TBT": "Time between two consecutive tokens of an answer, which has one gap less than tokens. "
    "The longest of these gaps is what a reader feels as a stall.",
    "Scheduling delay": "From arrival to the iteration that first computes something of the "
    "request, where the server tells it.",
    "P50, P90, P99": "The least value that so many percent of all do not exceed.",
    "95 % interval": "A bootstrap over blocks of neighbouring requests: what other requests would "
    "have given on the same machine in the same state.",
    "Rate": "Requests are sent at their times, whatever has become of those before.",
}


@dataclass(frozen=True)
class Section:
    """A part of a page, under a heading of its own."""

    title: str
    first: Sequence[Table]  # before the figures
    figures: Sequence[Rendered]
    tables: Sequence[Table]  # after them
    texts: Sequence[str] = ()  # paragraphs below the heading
    notes: Sequence[str] = ()  # at the end


def page(measured: ReportData, figures: Sequence[Rendered], title: str) -> str:
    """HTML that needs no other file."""
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
    """Any page of this look. It needs no other file.

    Args:
        terms: what words mean that the page uses.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(TEMPLATE).render(
        title=title,
        stylesheet=Markup(stylesheet()),
        alerts=alerts,
        facts=facts,
        sections=sections,
        terms=terms,
        variable=variable,
        safe=Markup,
    )


def _sections(measured: ReportData, figures: Sequence[Rendered]) -> list[Section]:
    """Those that have anything in them."""

    def of(*names: str) -> list[Rendered]:
        return [figure for figure in figures if figure.drawing.name in names]

    def those(*tables: Table | None) -> list[Table]:
        return [table for table in tables if table is not None]

    search, engine = of("capacity"), of("iterations")
    others = [figure for figure in figures if figure not in (*search, *engine)]
    latencies, comparison = latency_table(measured), comparison_table(measured)
    first = comparison is None and len(measured.loads) <= _FEW
    tables = None if first else latencies, throughput_table(measured), points_table(measured)
    found = [
        Section("Capacity", [], search, those(capacity_table(measured))),
        Section("Latency", those(comparison, latencies if first else None), others, []),
        Section("Inside the engine", [], engine, []),
        Section("Simulated hardware", those(simulation_table(measured)), [], []),
        Section("All loads", those(*tables, conduct_table(measured)), [], []),
    ]
    return [one for one in found if one.first or one.figures or one.tables]
