"""`sarathi compare`: several servers with the same requests, in turns, and their ratios."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from sarathi.bench.comparison import compare_runs, measurement_order
from sarathi.bench.measure import Requests, measure, prepare
from sarathi.bench.number_format import milliseconds
from sarathi.bench.results import Run, save
from sarathi.bench.server_process import ending_on_signals
from sarathi.bench.target import Target, running_server
from sarathi.bench.terminal import print_capacities, print_comparison
from sarathi.cli.arguments import add_options, argument_type, build, given_options, option_name
from sarathi.cli.capacity_searches import CapacitySearches
from sarathi.cli.measurement import (
    REQUESTS_PER_POINT,
    OutputOptions,
    Rate,
    ResultOptions,
    Screen,
    SearchOptions,
    ServerStart,
    Tokens,
    WorkloadOptions,
    add_request_arguments,
    credentials,
    make_load,
    print_json,
    probe_targets,
    run_options,
    save_report,
)
from sarathi.errors import BenchmarkError, UsageError
from sarathi.options import Count, Option, Seconds, TextForm, parse_text, parser_of

_ROUNDS = 2
_parse_rate = parser_of(Rate)


def _parse_rates(text: str) -> list[float]:
    rates = [_parse_rate(part) for part in text.split(",")]
    if len(set(rates)) < len(rates):
        raise ValueError(f"{text!r} has a rate twice")
    return rates


Rates = Annotated[list[float], TextForm(_parse_rates, "N,N,...")]


class CompareOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the command alone."""

    rounds: Annotated[
        Count | None, Option("with --rates: runs of each server at each rate", default=f"{_ROUNDS}")
    ] = None
    requests_per_point: Annotated[Count, REQUESTS_PER_POINT] = 50
    rates: Annotated[
        Rates | None,
        Option(
            "latencies at these rates, in requests per second",
            group="what to compare: one of the two",
        ),
    ] = None
    tbt_target: Annotated[
        Seconds | None, Option("capacities for this P99 of the time between tokens")
    ] = None


class _AddTarget(argparse.Action):
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
        targets = [*getattr(namespace, self.dest), Target(label.strip(), **{self.const: target})]
        setattr(namespace, self.dest, targets)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    group = parser.add_argument_group("servers, at least two; ratios are to the first")
    for option, field, metavar, text in (
        ("--start", "command", "LABEL=COMMAND", "started for each of its runs and stopped after"),
        ("--url", "url", "LABEL=URL", "a server that runs"),
    ):
        group.add_argument(
            option,
            action=_AddTarget,
            dest="targets",
            default=[],
            const=field,
            type=argument_type(parse_text),
            metavar=metavar,
            help=text,
        )
    add_options(parser, CompareOptions, ResultOptions, SearchOptions)
    add_request_arguments(parser)
    add_options(parser, ServerStart, OutputOptions)


def run(args: argparse.Namespace) -> int:
    """Compare latencies or capacities; return the exit code."""
    options, output = build(CompareOptions, args), build(OutputOptions, args)
    targets: list[Target] = args.targets
    labels = {target.label for target in targets}
    if len(labels) < 2 or len(labels) < len(targets):
        raise UsageError("give --start or --url at least twice, each with its own label")
    if (options.rates is None) == (options.tbt_target is None):
        raise UsageError("give either --rates or --tbt-target")
    if options.rates is not None and (searched := given_options(args, SearchOptions)):
        name = option_name(SearchOptions, next(iter(searched)))
        raise UsageError(f"{name} has no effect on --rates: omit it")
    if options.rates is not None and build(ResultOptions, args).fresh:
        raise UsageError("--fresh has no effect on --rates, which always measures: omit it")
    if options.rates is None and options.rounds is not None:
        raise UsageError("--rounds has no effect on a search: omit it")
    if build(WorkloadOptions, args).arrivals == "trace":
        raise UsageError("--arrivals trace cannot be compared: a trace has one rate")
    output.check_report()
    with ending_on_signals():
        if options.tbt_target is not None:
            return _compare_capacities(args, targets, options.tbt_target)
        return _compare_latencies(args, targets)


def _compare_capacities(
    args: argparse.Namespace, targets: Sequence[Target], tbt_target: float
) -> int:
    requests, output = build(CompareOptions, args).requests_per_point, build(OutputOptions, args)
    searches = CapacitySearches(args, targets, tbt_target=tbt_target, requests_per_point=requests)
    found = searches.run()
    results = [one.capacity for one in found]
    if output.json:
        print_json({"capacities": results})
    else:
        print_capacities(results)
    save_report(output.report, [], found, searches.screen)
    return 0 if any(result.capacity is not None for result in results) else 1


def _compare_latencies(args: argparse.Namespace, targets: Sequence[Target]) -> int:
    """Compare at given rates; return 1 where figures of a run must not be used."""
    output = build(OutputOptions, args)
    screen = Screen(quiet=output.json)
    runs = measure_in_turns(args, targets, screen)
    rows = compare_runs(runs, [target.label for target in targets])
    invalid = [run for run in runs if run.invalid is not None]
    if output.json:
        print_json({"rows": rows})
    else:
        print_comparison(rows)
    for run in invalid:
        screen.log(f"invalid: {run.label} at {run.rate:g}/s: {run.invalid}")
    save_report(output.report, runs, [], screen)
    return 1 if invalid else 0


def measure_in_turns(
    args: argparse.Namespace, targets: Sequence[Target], screen: Screen
) -> list[Run]:
    """Measure each target at each rate in each round; every run is saved as soon as it ends.

    Raises:
        BenchmarkError: a server cannot be measured.
    """
    options = build(CompareOptions, args)
    tokens = Tokens(args)
    load = make_load(args, options.requests_per_point, tokens)
    known = [facts.max_model_len for facts in probe_targets(args, targets, screen)]
    longest = min((length for length in known if length is not None), default=None)
    folder = _make_folder(build(ResultOptions, args).results)
    screen.log(f"runs are kept in {folder}")
    runs: list[Run] = []
    rates, rounds = options.rates or [], options.rounds or _ROUNDS
    for number, rate, order in measurement_order(rates, len(targets), rounds):
        # The first server of a turn counts the tokens; the others are sent the same requests.
        requests: Requests | None = None
        for index in order:
            target = targets[index]
            log = folder / f"server-{index + 1}.log"
            with running_server(target, credentials(args), log) as server:
                if requests is None:
                    tokens.use(server)
                    salt = f"{load.salt}/{rate:g}/{number}"
                    of_round = replace(load, seed=load.seed + number, salt=salt)
                    requests = prepare(of_round, rate, tokens, longest)
                title = f"{target.label} at {rate:g}/s, round {number + 1}"
                with screen.follow(title, len(requests.calls)) as listener:
                    run = measure(server, requests, run_options(args), listener)
            save(folder / f"run-{len(runs):03}.json.gz", run)
            runs.append(run)
            screen.log(f"{title}: P99 TBT {milliseconds(run.summary.tbt.p99)}")
    tokens.close()
    return runs


def _make_folder(results: Path) -> Path:
    """Make a new folder for the runs.

    Raises:
        BenchmarkError: it cannot be made.
    """
    folder = results / time.strftime("compare-%Y%m%d-%H%M%S")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise BenchmarkError(f"{folder} cannot be made: {error.strerror or error}") from None
    return folder
