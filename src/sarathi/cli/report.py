"""`sarathi report`: a page with figures of what bench, capacity and compare have saved."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Annotated

import msgspec

from sarathi.bench.report import CapacityWithRuns
from sarathi.bench.results import Run, load_all, load_iterations, runs_of
from sarathi.cli.arguments import add_options, build
from sarathi.cli.measurement import IterationLogOption, Screen, save_report
from sarathi.options import NewFile, Option


class ReportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the command."""

    output: Annotated[
        NewFile, Option("the page; its figures go beside it", metavar="FILE.html")
    ] = "report.html"
    iteration_log: IterationLogOption = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "results",
        nargs="+",
        type=Path,
        metavar="RESULT",
        help="a file of `sarathi bench --save`, or a folder of a search or a comparison",
    )
    add_options(parser, ReportOptions)


def run(args: argparse.Namespace) -> int:
    """Write the page; return the exit code."""
    options = build(ReportOptions, args)
    runs, capacities = [], []
    for path in args.results:
        for file, found in load_all(path):
            if isinstance(found, Run):
                runs.append(found)
            else:
                capacities.append(CapacityWithRuns(found, runs_of(found, file.parent)))
    log = options.iteration_log
    iterations = [] if log is None else load_iterations(log)
    save_report(options.output, runs, capacities, Screen(quiet=False), iterations)
    return 0
