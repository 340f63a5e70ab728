"""`sarathi compare`: several servers with the same requests, in turns, and their ratios."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import msgspec

from sarathi.bench.measure import Requests, measure, prepare
from sarathi.bench.report.table import milliseconds
from sarathi.bench.results import Run, compare_runs, measurement_order, save
from sarathi.bench.target import Target, ending_on_signals, running_server
from sarathi.bench.terminal import print_capacities, print_comparison
from sarathi.cli import measurement
from sarathi.cli.capacity import CapacitySearches
from sarathi.errors import UsageError
from sarathi.options import Count, Option, Seconds, TextForm, changed, parse_text, parser_of

_ROUNDS = 2
_parse_rate = parser_of(measurement.Rate)


def _parse_rates(text: str) -> list[float]:
    rates = [_parse_rate(part) for part in text.split(",")]
    if len(set(rates)) < len(rates):
        raise ValueError(f"{text!r} has a rate twice")
    return rates


Rates = Annotated[list[float], TextForm(_parse_rates, "N,N,...")]


class _AddTarget(argparse.Action):
    """Collects --start and --url in the order in which they are given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        label, equals, server = (part.strip() for part in str(values).partition("="))
        field = "url" if option_string == "--url" else "command"
        if not (equals and label and server):
            parser.error(f"{option_string} {values!r} is not of the form LABEL={field.upper()}")
        target = Target(label, **{field: server})
        setattr(namespace, self.dest, [*getattr(namespace, self.dest, ()), target])


class CompareOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the command."""

    targets: Annotated[
        tuple[Annotated[Target, TextForm(parse_text, "LABEL=COMMAND|URL")], ...],
        Option(
            "a server that is started for each of its runs and stopped after, or one that runs",
            group="servers, at least two; ratios are to the first",
            name="start",
            aliases=("url",),
            action=_AddTarget,
        ),
    ] = ()
    rounds: Annotated[
        Count | None,
        Option("with --rates: runs of each server at each rate", default=f"{_ROUNDS}", group=""),
    ] = None
    requests_per_point: Annotated[Count, measurement.REQUESTS_PER_POINT] = 50
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
    servers: measurement.ServerMeasurement


def run(options: CompareOptions) -> int:
    """Compare latencies or capacities; return the exit code."""
    targets, servers = options.targets, options.servers
    labels = {target.label for target in targets}
    if len(labels) < 2 or len(labels) < len(targets):
        raise UsageError("give --start or --url at least twice, each with its own label")
    if (options.rates is None) == (options.tbt_target is None):
        raise UsageError("give either --rates or --tbt-target")
    if options.rates is None:
        if options.rounds is not None:
            raise UsageError("--rounds has no effect on a search: omit it")
    else:
        for name in changed(servers.search):
            raise UsageError(f"{name} has no effect on --rates: omit it")
        if servers.results.fresh:
            raise UsageError("--fresh has no effect on --rates, which always measures: omit it")
    if servers.requests.workload.arrivals == "trace":
        raise UsageError("--arrivals trace cannot be compared: a trace has one rate")
    servers.output.check()
    with ending_on_signals():
        if options.tbt_target is not None:
            return _compare_capacities(options, options.tbt_target)
        return _compare_latencies(options)


def _compare_capacities(options: CompareOptions, tbt_target: float) -> int:
    output = options.servers.output
    searches = CapacitySearches(
        options.servers,
        options.targets,
        tbt_target=tbt_target,
        requests_per_point=options.requests_per_point,
    )
    found = searches.run()
    results = [one.capacity for one in found]
    if output.json:
        measurement.print_json({"capacities": results})
    else:
        print_capacities(results)
    measurement.save_report(output.report, [], found, searches.screen)
    return 0 if any(result.capacity is not None for result in results) else 1


def _compare_latencies(options: CompareOptions) -> int:
    """Compare at given rates; return 1 where figures of a run must not be used."""
    output = options.servers.output
    screen = measurement.Screen(quiet=output.json)
    runs = measure_in_turns(options, options.targets, screen)
    rows = compare_runs(runs, [target.label for target in options.targets])
    invalid = [run for run in runs if run.invalid is not None]
    if output.json:
        measurement.print_json({"rows": rows})
    else:
        print_comparison(rows)
    for run in invalid:
        screen.log(f"invalid: {run.label} at {run.rate:g}/s: {run.invalid}")
    measurement.save_report(output.report, runs, [], screen)
    return 1 if invalid else 0


def measure_in_turns(
    options: CompareOptions, targets: Sequence[Target], screen: measurement.Screen
) -> list[Run]:
    """Measure each target at each rate in each round; every run is saved as soon as it ends.

    Raises:
        BenchmarkError: a server cannot be measured.
        OSError: there is no place for the runs.
    """
    servers = options.servers
    tokens = measurement.Tokens(servers.requests)
    load = servers.requests.load(options.requests_per_point, tokens)
    known = [facts.max_model_len for facts in servers.probe(targets, screen)]
    longest = min(filter(None, known), default=None)
    folder = servers.results.results / time.strftime("compare-%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    screen.log(f"runs are kept in {folder}")
    runs: list[Run] = []
    rates, rounds = options.rates or [], options.rounds or _ROUNDS
    for number, rate, order in measurement_order(rates, len(targets), rounds):
        # The first server of a turn counts the tokens; the others are sent the same requests.
        requests: Requests | None = None
        for index in order:
            target = targets[index]
            log = folder / f"server-{index + 1}.log"
            with running_server(target, servers.credentials, log) as server:
                if requests is None:
                    tokens.use(server)
                    salt = f"{load.salt}/{rate:g}/{number}"
                    of_round = replace(load, seed=load.seed + number, salt=salt)
                    requests = prepare(of_round, rate, tokens, longest)
                title = f"{target.label} at {rate:g}/s, round {number + 1}"
                with screen.follow(title, len(requests.calls)) as progress:
                    run = measure(server, requests, servers.requests.evaluation(), progress)
            save(folder / f"run-{len(runs):03}.json.gz", run)
            runs.append(run)
            screen.log(f"{title}: P99 TBT {milliseconds(run.summary.tbt.p99)}")
    tokens.close()
    return runs
