"""Measure several servers with the same requests, in turns, and print ratios."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sarathi.cli.engine_options import duration, positive, utf8
from sarathi.cli.load_options import (
    add_fresh_argument,
    add_load_arguments,
    add_output_arguments,
    add_requests_argument,
    add_results_argument,
    add_search_arguments,
    add_start_timeout,
    given_search_options,
    request_rates,
)
from sarathi.errors import UsageError

if TYPE_CHECKING:
    from sarathi.bench.target import Target

_ROUNDS = 2


class _AddContender(argparse.Action):
    """Collects --url and --start in the order in which they are given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        label, equals, target = str(values).partition("=")
        if not (equals and label.strip() and target.strip()):
            parser.error(f"{option_string} {values!r} is not of the form LABEL={self.metavar}")
        contenders = [*getattr(namespace, self.dest), (label.strip(), self.const, target)]
        setattr(namespace, self.dest, contenders)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("contenders, at least two; ratios are to the first")
    for option, name, about in (
        ("--start", "LABEL=COMMAND", "a server, started for each of its runs and stopped after"),
        ("--url", "LABEL=URL", "a server that runs"),
    ):
        group.add_argument(
            option,
            action=_AddContender,
            dest="contenders",
            default=[],
            const=option,
            type=utf8,
            metavar=name,
            help=about,
        )
    what = parser.add_argument_group("what to compare: one of the two")
    what.add_argument(
        "--rates",
        type=request_rates,
        metavar="N,N,...",
        help="latencies at these rates, in requests per second",
    )
    what.add_argument(
        "--tbt-target",
        type=duration,
        metavar="DURATION",
        help="capacities for this P99 of the time between tokens",
    )
    parser.add_argument(
        "--rounds",
        type=positive,
        metavar="N",
        help=f"with --rates: runs of each server at each rate (default: {_ROUNDS})",
    )
    add_requests_argument(parser, default=50)
    add_results_argument(parser)
    add_fresh_argument(parser)
    add_search_arguments(parser)
    add_load_arguments(parser)
    add_start_timeout(parser)
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from sarathi.bench.report import check_reports_can_be_made
    from sarathi.bench.server_process import ending_on_signals
    from sarathi.bench.target import Target

    labels = [label for label, _, _ in args.contenders]
    if len(set(labels)) < 2 or len(set(labels)) < len(labels):
        raise UsageError("give --start or --url at least twice, each with a label of its own")
    if (args.rates is None) == (args.tbt_target is None):
        raise UsageError("give either --rates or --tbt-target")
    if args.rates is not None and (searched := given_search_options(args)):
        option = next(iter(searched)).replace("_", "-")
        raise UsageError(f"--{option} has no effect on --rates: omit it")
    if args.rates is not None and args.fresh:
        raise UsageError("--fresh has no effect on --rates, which always measures: omit it")
    if args.rates is None and args.rounds is not None:
        raise UsageError("--rounds has no effect on a search: omit it")
    if args.arrivals == "trace":
        raise UsageError("--arrivals trace cannot be compared: a trace has one rate")
    contenders = [
        Target(label, command=target) if option == "--start" else Target(label, url=target)
        for label, option, target in args.contenders
    ]
    if args.report is not None:
        check_reports_can_be_made()
    with ending_on_signals():
        if args.rates is None:
            return _capacities(args, contenders)
        return _latencies(args, contenders)


def _capacities(args: argparse.Namespace, contenders: Sequence[Target]) -> int:
    from sarathi.bench.terminal import capacity_fields, print_capacities
    from sarathi.cli.reporting import print_json, report
    from sarathi.cli.searching import Searches

    searches = Searches(args, contenders)
    found = searches.run()
    results = [one.capacity for one in found]
    if args.json:
        print_json({"capacities": [capacity_fields(result) for result in results]})
    else:
        print_capacities(results)
    report(args.report, [], found, searches.screen)
    return 0 if any(result.capacity is not None for result in results) else 1


def _latencies(args: argparse.Namespace, contenders: Sequence[Target]) -> int:
    """The exit code is 1 where figures of a run must not be used."""
    from sarathi.bench.comparison import compare_runs
    from sarathi.bench.terminal import print_comparison
    from sarathi.cli.comparing import measure_in_turns
    from sarathi.cli.measuring import Screen
    from sarathi.cli.reporting import print_json, report

    screen = Screen(quiet=args.json)
    runs = measure_in_turns(args, contenders, args.rounds or _ROUNDS, screen)
    rows = compare_runs(runs, [contender.label for contender in contenders])
    invalid = [run for run in runs if run.invalid is not None]
    if args.json:
        print_json({"rows": rows})
    else:
        print_comparison(rows)
    for run in invalid:
        screen.say(f"invalid: {run.label} at {run.rate:g}/s: {run.invalid}")
    report(args.report, runs, [], screen)
    return 1 if invalid else 0
