"""The HTML report: figures and tables of runs, searches and iteration logs.

`measured.py` orders the data; `figures/` describes the charts, which `chart.py` draws;
`result_tables.py` makes the tables (also for the terminal), `notes.py` the warnings, `page.py` the
page from `templates/`. Import `write_report` from here; the simulator also uses `Table`, `Drawing`
and `Section`. Nothing above `figures/`, `chart.py` and `page.py` imports matplotlib, which is an
optional dependency.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from sarathi.bench.report.measured import CapacityWithRuns, ReportData
from sarathi.bench.report.notes import alerts, facts
from sarathi.bench.results import Run
from sarathi.errors import BenchmarkError
from sarathi.telemetry.iteration_log import IterationLine

__all__ = ["CapacityWithRuns", "check_reports_can_be_made", "write_report"]


def check_reports_can_be_made() -> None:
    """Raise BenchmarkError, before an hour of measuring, where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise BenchmarkError("reports need matplotlib: pip install 'sarathi-serve[report]'")


def write_report(
    path: Path,
    runs: Sequence[Run],
    capacities: Sequence[CapacityWithRuns],
    iterations: Sequence[IterationLine] = (),
    title: str = "Latency and capacity",
) -> list[Path]:
    """Write one HTML page that needs nothing else, and its figures as PNG beside it.

    The PNG are in the folder `<stem>-figures`. Files of the same names are replaced. Returns the
    written files, the page first.

    Raises:
        BenchmarkError: there is nothing to report, matplotlib is missing, or a file cannot be
            written.
    """
    if not (runs or capacities or iterations):
        raise BenchmarkError("there is nothing to report: no run, no capacity, no iteration")
    check_reports_can_be_made()
    from sarathi.bench.report import page  # matplotlib takes half a second

    measured = ReportData(runs, capacities, iterations)
    folder = path.with_name(f"{path.stem}-figures")
    sections = page.sections_of(measured)
    return page.write_page(
        path, folder, title, sections, page.TERMS, facts(measured), alerts(measured)
    )
