"""`sarathi bench`: the latencies of a server at a given load."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Annotated

import msgspec

from sarathi.bench.measure import measure, prepare
from sarathi.bench.results import load_iterations, save
from sarathi.bench.target import Target, running_server
from sarathi.bench.terminal import print_run, run_fields
from sarathi.cli.arguments import add_options, build
from sarathi.cli.measurement import (
    DEFAULT_URL,
    IterationLogOption,
    Label,
    OutputOptions,
    RateOption,
    SaveOption,
    Screen,
    Tokens,
    add_request_arguments,
    credentials,
    make_load,
    print_json,
    run_options,
    save_report,
)
from sarathi.errors import UsageError
from sarathi.options import Count, Option, Seconds
from sarathi.telemetry import Targets

_READY_TIMEOUT = 60.0  # seconds for a server that is found loading


class BenchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the command alone."""

    url: Annotated[str, Option("the server", metavar="URL")] = DEFAULT_URL
    label: Annotated[Label | None, Option("its name in reports", default="its address")] = None
    rate: RateOption = None
    num_requests: Annotated[Count, Option("to measure, after the warm-up")] = 100
    ttft_target: Annotated[Seconds | None, Option("for goodput: time to first token")] = None
    tbt_target: Annotated[
        Seconds | None, Option("for goodput: longest time between two tokens of an answer")
    ] = None
    save: SaveOption = None
    iteration_log: IterationLogOption = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_options(parser, BenchOptions)
    add_request_arguments(parser)
    add_options(parser, OutputOptions)


def run(args: argparse.Namespace) -> int:
    """Measure a server; return 1 where the figures must not be used."""
    options, output = build(BenchOptions, args), build(OutputOptions, args)
    if options.iteration_log is not None and output.report is None:
        raise UsageError("--iteration-log needs --report: it is for its figures")
    output.check_report(options.save)
    tokens = Tokens(args)
    load = make_load(args, options.num_requests, tokens)
    targets = Targets(options.ttft_target, options.tbt_target)
    settings = run_options(args, None if targets == Targets() else targets)
    screen = Screen(quiet=output.json)
    target = Target(options.label or options.url, url=options.url)
    with running_server(target, credentials(args, _READY_TIMEOUT)) as server:
        tokens.use(server)
        requests = prepare(load, options.rate, tokens, server.facts.max_model_len)
        screen.log(f"{len(requests.calls)} requests to {server.facts.model} at {options.url}")
        with screen.follow(target.label, len(requests.calls)) as listener:
            result = measure(server, requests, settings, listener)
    if output.json:
        print_json(run_fields(result))
    else:
        print_run(result)
    if options.save is not None:
        save(Path(options.save), result)
    path = options.iteration_log
    iterations = [] if path is None else load_iterations(path)
    save_report(output.report, [result], [], screen, iterations)
    if result.invalid is not None:
        print(f"sarathi bench: this run is invalid: {result.invalid}", file=sys.stderr)
        return 1
    return 0
