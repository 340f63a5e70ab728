"""`sarathi report`: a page with figures of what bench, capacity and compare have saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from sarathi.bench.report import CapacityWithRuns
from sarathi.bench.results import Run, load_all, load_iterations, runs_of
from sarathi.cli.measurement import IterationLogOption, Screen, save_report
from sarathi.options import NewFile, Option


class ReportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the command."""

    results: Annotated[
        tuple[Path, ...],
        Option(
            "a file of `sarathi bench --save`, or a folder of a search or a comparison",
            metavar="RESULT",
            positional=True,
        ),
    ]
    output: Annotated[
        NewFile, Option("the page; its figures go beside it", metavar="FILE.html")
    ] = "report.html"
    iteration_log: IterationLogOption = None


def run(options: ReportOptions) -> int:
    """Write the page; return the exit code."""
    runs, capacities = [], []
    for path in options.results:
        for file, found in load_all(path):
            if isinstance(found, Run):
                runs.append(found)
            else:
                capacities.append(CapacityWithRuns(found, runs_of(found, file.parent)))
    log = options.iteration_log
    iterations = [] if log is None else load_iterations(log)
    save_report(options.output, runs, capacities, Screen(quiet=False), iterations)
    return 0
