"""Find the highest request rate that a server takes within a latency target."""

from __future__ import annotations

import argparse
from dataclasses import replace

from sarathi.cli.errors import UsageError
from sarathi.cli.load_options import (
    DEFAULT_URL,
    add_fresh_argument,
    add_load_arguments,
    add_output_arguments,
    add_requests_argument,
    add_results_argument,
    add_search_arguments,
    add_start_timeout,
    label,
)
from sarathi.cli.options import duration, utf8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url",
        type=utf8,
        help=f"the server (default: where --start listens, or else {DEFAULT_URL})",
    )
    parser.add_argument(
        "--start",
        type=utf8,
        metavar="COMMAND",
        help="start the server with this command, and stop it at the end",
    )
    parser.add_argument(
        "--label",
        type=label,
        metavar="TEXT",
        help="its name in reports (default: the command or the address)",
    )
    parser.add_argument(
        "--tbt-target",
        type=duration,
        required=True,
        metavar="DURATION",
        help="P99 of the time between tokens must meet it, such as 200ms",
    )
    add_requests_argument(parser, default=30)  # those of slow servers; others get more
    add_results_argument(parser)
    add_fresh_argument(parser)
    add_search_arguments(parser)
    add_load_arguments(parser)
    add_start_timeout(parser)
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """The exit code is 1 where no rate meets the target."""
    from sarathi.benchmark.contender import Contender
    from sarathi.benchmark.launch import ending_on_signals
    from sarathi.benchmark.report import check_reports_can_be_made
    from sarathi.benchmark.tables import capacity_fields, print_capacities
    from sarathi.cli.reporting import print_json, report
    from sarathi.cli.searching import Searches

    if args.arrivals == "trace":
        raise UsageError("--arrivals trace cannot be searched: a trace has one rate")
    if args.report is not None:
        check_reports_can_be_made()
    url = args.url if args.url or args.start else DEFAULT_URL
    unnamed = Contender("", url, args.start)
    contender = replace(unnamed, label=args.label or unnamed.server)
    with ending_on_signals():
        searches = Searches(args, [contender])
        [found] = searches.run()
    result = found.capacity
    if args.json:
        print_json(capacity_fields(result))
    else:
        print_capacities([result])
    report(args.report, [], [found], searches.screen)
    return 0 if result.capacity is not None else 1
