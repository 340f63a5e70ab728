"""The HTML page: its sections, and the template that renders them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from sarathi.bench.report import result_tables
from sarathi.bench.report.chart import LABELS, Drawing, definitions, render
from sarathi.bench.report.figures import drawings
from sarathi.bench.report.measured import ReportData
from sarathi.bench.report.notes import Alert, Fact
from sarathi.bench.report.table import Table
from sarathi.errors import BenchmarkError

TERMS = {
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
    first: Sequence[Table] = ()  # before the figures
    figures: Sequence[Drawing] = ()
    tables: Sequence[Table] = ()  # after them
    texts: Sequence[str] = ()  # paragraphs below the heading
    notes: Sequence[str] = ()  # at the end


def write_page(
    path: Path,
    folder: Path,
    title: str,
    sections: Sequence[Section],
    terms: Mapping[str, str],  # with their definitions
    facts: Sequence[Fact] = (),
    alerts: Sequence[Alert] = (),
) -> list[Path]:
    """Write HTML that needs no other file, and its figures as PNG in the folder.

    Existing files are replaced. Returns the written files, the page first.

    Raises:
        BenchmarkError: a file cannot be written.
    """
    figures = {one.name: render(one) for section in sections for one in section.figures}
    loader = PackageLoader("sarathi.bench.report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    text = environment.get_template("report.html.j2").render(
        title=title,
        colours=definitions,
        num_colours=len(LABELS),
        alerts=alerts,
        facts=facts,
        sections=sections,
        rendered=figures,
        terms=terms,
    )
    written = [path]
    try:
        path.write_bytes(text.encode("utf-8", "replace"))
        if figures:
            folder.mkdir(exist_ok=True)
        for name, figure in figures.items():
            written.append(folder / f"{name}.png")
            written[-1].write_bytes(figure.png)
    except OSError as error:
        raise BenchmarkError(f"the report cannot be written to {path}: {error}") from None
    return written


def sections_of(measured: ReportData) -> list[Section]:
    """Return the sections of everything that was measured, those that have any content."""
    figures = {figure.name: figure for figure in drawings(measured)}
    search, engine = (
        [figures.pop(name)] if name in figures else [] for name in ("capacity", "iterations")
    )

    def those(*tables: Table | None) -> list[Table]:
        return [table for table in tables if table is not None]

    latencies = result_tables.latency_table(measured)
    comparison = result_tables.comparison_table(measured)
    points = result_tables.points_table(measured)
    first = comparison is None and len(measured.loads) <= 4  # latencies are best seen first
    tables = None if first else latencies, result_tables.throughput_table(measured), points
    found = [
        Section("Capacity", (), search, those(result_tables.capacity_table(measured))),
        Section("Latency", those(comparison, latencies if first else None), list(figures.values())),
        Section("Inside the engine", figures=engine),
        Section("Simulated hardware", those(result_tables.simulation_table(measured))),
        Section("All loads", those(*tables, result_tables.conduct_table(measured))),
    ]
    return [one for one in found if one.first or one.figures or one.tables]
