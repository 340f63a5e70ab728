"""Measure the latencies of a server at a given load."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sarathi.cli.engine_options import duration, new_file, positive, utf8
from sarathi.cli.load_options import (
    DEFAULT_URL,
    add_iteration_log_argument,
    add_load_arguments,
    add_output_arguments,
    label,
    request_rate,
)
from sarathi.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url", type=utf8, default=DEFAULT_URL, help="the server (default: %(default)s)"
    )
    parser.add_argument(
        "--label", type=label, metavar="TEXT", help="its name in reports (default: its address)"
    )
    parser.add_argument(
        "--rate",
        type=request_rate,
        metavar="N",
        help="requests per second; only --arrivals trace does without",
    )
    parser.add_argument(
        "--num-requests",
        type=positive,
        default=100,
        metavar="N",
        help="to measure, after the warm-up (default: %(default)s)",
    )
    parser.add_argument(
        "--ttft-target", type=duration, metavar="DURATION", help="for goodput: time to first token"
    )
    parser.add_argument(
        "--tbt-target",
        type=duration,
        metavar="DURATION",
        help="for goodput: longest time between two tokens of an answer",
    )
    add_load_arguments(parser)
    add_output_arguments(parser)
    parser.add_argument(
        "--save", type=new_file, metavar="FILE.json", help="all times, for `sarathi report`"
    )
    add_iteration_log_argument(parser)


def run(args: argparse.Namespace) -> int:
    """The exit code is 1 where the figures must not be used."""
    # Imported here, as in the other commands: those that do not measure need no client.
    from sarathi.bench.measure import measure, prepare
    from sarathi.bench.report import check_reports_can_be_made
    from sarathi.bench.results import load_iterations, save
    from sarathi.bench.target import Target, running_server
    from sarathi.bench.terminal import print_run, run_fields
    from sarathi.cli.measuring import Screen, Tokens, access_of, load_of, terms_of
    from sarathi.cli.reporting import print_json, report
    from sarathi.telemetry import Targets

    if args.iteration_log is not None and args.report is None:
        raise UsageError("--iteration-log needs --report: it is for its figures")
    if args.report is not None:
        if args.report == args.save:
            raise UsageError("--save and --report are the same file")
        check_reports_can_be_made()
    tokens = Tokens(args)
    load = load_of(args, args.num_requests, tokens)
    targets = Targets(args.ttft_target, args.tbt_target)
    terms = terms_of(args, None if targets == Targets() else targets)
    screen = Screen(quiet=args.json)
    contender = Target(args.label or args.url, url=args.url)
    with running_server(contender, access_of(args)) as subject:
        tokens.ask(subject)
        requests = prepare(load, args.rate, tokens, subject.facts.max_model_len)
        screen.say(f"{len(requests.calls)} requests to {subject.facts.model} at {args.url}")
        with screen.follow(contender.label, len(requests.calls)) as watch:
            result = measure(subject, requests, terms, watch)
    if args.json:
        print_json(run_fields(result))
    else:
        print_run(result)
    if args.save is not None:
        save(Path(args.save), result)
    lines = [] if args.iteration_log is None else load_iterations(args.iteration_log)
    report(args.report, [result], [], screen, lines)
    if result.invalid is not None:
        print(f"sarathi bench: this run is invalid: {result.invalid}", file=sys.stderr)
        return 1
    return 0
