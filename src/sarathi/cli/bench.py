"""`sarathi bench`: the latencies of a server at a given load."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec

from sarathi.bench.measure import measure, prepare
from sarathi.bench.results import load_iterations
from sarathi.bench.target import Target, running_server
from sarathi.cli import measurement
from sarathi.errors import UsageError
from sarathi.options import Count, Option, Seconds
from sarathi.telemetry import Targets

_READY_TIMEOUT = 60.0  # seconds for a server that is found loading


class BenchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the command."""

    url: Annotated[str, Option("the server", metavar="URL")] = measurement.DEFAULT_URL
    label: Annotated[
        measurement.Label | None, Option("its name in reports", default="its address")
    ] = None
    rate: measurement.RateOption = None
    num_requests: Annotated[Count, Option("to measure, after the warm-up")] = 100
    ttft_target: Annotated[Seconds | None, Option("for goodput: time to first token")] = None
    tbt_target: Annotated[
        Seconds | None, Option("for goodput: longest time between two tokens of an answer")
    ] = None
    iteration_log: measurement.IterationLogOption = None
    requests: measurement.RequestOptions
    output: measurement.RunOutput


def run(options: BenchOptions) -> int:
    """Measure a server; return 1 where the figures must not be used."""
    output, log = options.output, options.iteration_log
    if log is not None and output.report is None:
        raise UsageError("--iteration-log needs --report: it is for its figures")
    output.check()
    tokens = measurement.Tokens(options.requests)
    load = options.requests.load(options.num_requests, tokens)
    targets = Targets(options.ttft_target, options.tbt_target)
    settings = options.requests.evaluation(None if targets == Targets() else targets)
    screen = measurement.Screen(quiet=output.json)
    target = Target(options.label or options.url, url=options.url)
    with running_server(target, options.requests.credentials(_READY_TIMEOUT)) as server:
        tokens.use(server)
        requests = prepare(load, options.rate, tokens, server.facts.max_model_len)
        screen.log(f"{len(requests.calls)} requests to {server.facts.model} at {options.url}")
        with screen.follow(target.label, len(requests.calls)) as progress:
            result = measure(server, requests, settings, progress)
    output.publish(result, screen, [] if log is None else load_iterations(log))
    if result.invalid is not None:
        print(f"sarathi bench: this run is invalid: {result.invalid}", file=sys.stderr)
        return 1
    return 0
