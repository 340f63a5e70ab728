"""Find the highest request rate that a server takes within a latency target."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from sarathi.cli.engine_options import duration, utf8
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
from sarathi.cli.simulation_options import add_simulation_arguments, given_simulation_options
from sarathi.errors import UsageError

if TYPE_CHECKING:
    from sarathi.bench.report import CapacityWithRuns


_REQUESTS = 30  # those of slow servers; others get more
_SIMULATED_REQUESTS = 2048  # as in the paper
_OF_SERVERS = (
    "url",
    "start",
    "start_timeout",
    "api",
    "api_key",
    "api_key_file",
    "no_ignore_eos",
    "salt",
    "timeout",
    "max_client_lag",
    "results",
    "fresh",
)


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
    parser.add_argument(
        "--simulate",
        action="store_true",
        help="measure no server, but simulate the hardware and the engine that are described; "
        "nothing is asked, sent or kept then",
    )
    add_requests_argument(parser, None, f"{_REQUESTS}, or {_SIMULATED_REQUESTS} simulated")
    add_results_argument(parser)
    add_fresh_argument(parser)
    add_search_arguments(parser)
    add_load_arguments(parser)
    add_simulation_arguments(parser)
    add_start_timeout(parser)
    add_output_arguments(parser)
    parser.set_defaults(default_of=parser.get_default)


def run(args: argparse.Namespace) -> int:
    """The exit code is 1 where no rate meets the target."""
    from sarathi.bench.report import check_reports_can_be_made
    from sarathi.bench.terminal import capacity_fields, print_capacities
    from sarathi.cli.measuring import Screen
    from sarathi.cli.reporting import print_json, report

    if args.arrivals == "trace":
        raise UsageError("--arrivals trace cannot be searched: a trace has one rate")
    if args.report is not None:
        check_reports_can_be_made()
    if args.requests_per_point is None:
        args.requests_per_point = _SIMULATED_REQUESTS if args.simulate else _REQUESTS
    found = _simulated(args) if args.simulate else _measured(args)
    result = found.capacity
    if args.json:
        print_json(capacity_fields(result))
    else:
        print_capacities([result])
    report(args.report, [], [found], Screen(quiet=args.json))
    return 0 if result.capacity is not None else 1


def _measured(args: argparse.Namespace) -> CapacityWithRuns:
    from sarathi.bench.server_process import ending_on_signals
    from sarathi.bench.target import Target
    from sarathi.cli.searching import Searches

    for name in given_simulation_options(args):
        raise UsageError(f"--{name.replace('_', '-')} needs --simulate: it describes no server")
    url = args.url if args.url or args.start else DEFAULT_URL
    unnamed = Target("", url, args.start)
    contender = replace(unnamed, label=args.label or unnamed.server)
    with ending_on_signals():
        [found] = Searches(args, [contender]).run()
    return found


def _simulated(args: argparse.Namespace) -> CapacityWithRuns:
    from sarathi.cli.simulating import default_label, setup_of, simulated_capacity

    for name in _OF_SERVERS:
        if getattr(args, name) != args.default_of(name):
            option = name.replace("_", "-")
            raise UsageError(f"--{option} and --simulate exclude each other: no server is asked")
    setup = setup_of(args, args.tbt_target, None)
    return simulated_capacity(args, setup, args.label or default_label(setup.description))
