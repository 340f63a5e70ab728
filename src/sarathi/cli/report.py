"""Make a page with figures of what bench, capacity and compare have saved."""

from __future__ import annotations

import argparse
from pathlib import Path

from sarathi.cli.engine_options import new_file
from sarathi.cli.load_options import add_iteration_log_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results",
        nargs="+",
        type=Path,
        metavar="RESULT",
        help="a file of `sarathi bench --save`, or a folder of a search or a comparison",
    )
    parser.add_argument(
        "--output",
        type=new_file,
        default="report.html",
        metavar="FILE.html",
        help="the page; its figures go beside it (default: %(default)s)",
    )
    add_iteration_log_argument(parser)


def run(args: argparse.Namespace) -> int:
    from sarathi.bench.report import CapacityWithRuns
    from sarathi.bench.results import Run, load_all, load_iterations, runs_of
    from sarathi.cli.measuring import Screen
    from sarathi.cli.reporting import report

    runs, capacities = [], []
    for path in args.results:
        for file, found in load_all(path):
            if isinstance(found, Run):
                runs.append(found)
            else:
                capacities.append(CapacityWithRuns(found, runs_of(found, file.parent)))
    lines = [] if args.iteration_log is None else load_iterations(args.iteration_log)
    report(args.output, runs, capacities, Screen(quiet=False), lines)
    return 0
