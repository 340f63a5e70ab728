"""The HTML report: figures and tables of runs, searches and iteration logs.

`measured.py` orders the data; `figures/` draws them with `render.py`, `result_tables.py` makes the
tables (also for the terminal), `notes.py` the warnings, `page.py` the page from `templates/`.
Import `write_report` from here; the simulator also uses `Table`, `Drawing` and `Section`. Nothing
above `figures/`, `render.py` and `page.py` imports matplotlib, which is an optional dependency.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from sarathi.bench.report.measured import CapacityWithRuns, ReportData
from sarathi.bench.results import Run
from sarathi.errors import BenchmarkError
from sarathi.telemetry.iteration_log import IterationLine

__all__ = ["CapacityWithRuns", "check_reports_can_be_made", "write_report"]


def check_reports_can_be_made() -> None:
    """Check that matplotlib is installed, before an hour of measuring.

    Raises:
        BenchmarkError: it is missing.
    """
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

    The PNG are in the folder `<stem>-figures`. Files of the same names are replaced.

    Args:
        iterations: lines of an iteration log, in their order.

    Returns:
        The written files, the page first.

    Raises:
        BenchmarkError: there is nothing to report, matplotlib is missing, or a file cannot be
            written.
    """
    if not (runs or capacities or iterations):
        raise BenchmarkError("there is nothing to report: no run, no capacity, no iteration")
    check_reports_can_be_made()
    # Imported here: matplotlib takes half a second and is an extra.
    from sarathi.bench.report.figures import drawings
    from sarathi.bench.report.page import page
    from sarathi.bench.report.render import render

    measured = ReportData(tuple(runs), tuple(capacities), tuple(iterations))
    figures = [render(drawing) for drawing in drawings(measured)]
    folder = path.with_name(f"{path.stem}-figures")
    written = [path]
    try:
        path.write_bytes(page(measured, figures, title).encode("utf-8", "replace"))
        if figures:
            folder.mkdir(exist_ok=True)
        for figure in figures:
            written.append(folder / f"{figure.drawing.name}.png")
            written[-1].write_bytes(figure.png)
    except OSError as error:
        raise BenchmarkError(f"the report cannot be written to {path}: {error}") from None
    return written
