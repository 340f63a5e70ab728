"""`sarathi capacity`: the highest request rate that a server takes within a latency target.

`CapacitySearches` is also what `sarathi compare` searches with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec

from sarathi import __version__
from sarathi.bench.capacity.capacity_search import CapacitySearch, Search, SearchStore, Try
from sarathi.bench.capacity.verdict import EarlyStopping
from sarathi.bench.measure import measure, prepare
from sarathi.bench.report import CapacityWithRuns
from sarathi.bench.results import RESULT_NAME, Point, Run, describe_machine, runs_of, save
from sarathi.bench.target import RunningServer, Target, ending_on_signals, running_server
from sarathi.bench.terminal import print_capacities
from sarathi.cli import measurement
from sarathi.cli.simulation import SimulationOptions, default_label, progress_bar, simulated_load
from sarathi.errors import UsageError
from sarathi.options import Count, Option, Seconds, changed
from sarathi.simulator.simulated_run import find_capacity

_REQUESTS = 30  # those of slow servers; others get more
_SIMULATED_REQUESTS = 2048  # as in the paper
_HALVINGS = 4  # of the first rate: a search may take long, but not for ever


class CapacityTarget(msgspec.Struct, frozen=True, kw_only=True):
    """The server to measure."""

    url: Annotated[
        str | None,
        Option("the server", default=f"where --start listens, or else {measurement.DEFAULT_URL}"),
    ] = None
    start: Annotated[
        str | None,
        Option("start the server with this command, and stop it at the end", metavar="COMMAND"),
    ] = None


class CapacityOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the command."""

    target: CapacityTarget
    label: Annotated[
        measurement.Label | None,
        Option("its name in reports", default="the command or the address"),
    ] = None
    tbt_target: Annotated[
        Seconds, Option("P99 of the time between tokens must meet it, such as 200ms")
    ]
    simulate: Annotated[
        bool,
        Option(
            "measure no server, but simulate the hardware and the engine that are described; "
            "nothing is sent or kept then"
        ),
    ] = False
    requests_per_point: Annotated[
        Count | None,
        replace(
            measurement.REQUESTS_PER_POINT,
            default=f"{_REQUESTS}, or {_SIMULATED_REQUESTS} simulated",
        ),
    ] = None
    servers: measurement.ServerMeasurement
    simulation: SimulationOptions


def run(options: CapacityOptions) -> int:
    """Search for the capacity; return 1 where no rate meets the target."""
    output = options.servers.output
    if options.servers.requests.workload.arrivals == "trace":
        raise UsageError("--arrivals trace cannot be searched: a trace has one rate")
    output.check()
    screen = measurement.Screen(quiet=output.json)
    found = _simulated(options, screen) if options.simulate else _measured(options)
    result = found.capacity
    if output.json:
        measurement.print_json(result)
    else:
        print_capacities([result])
    measurement.save_report(output.report, [], [found], screen)
    return 0 if result.capacity is not None else 1


def _measured(options: CapacityOptions) -> CapacityWithRuns:
    for name in (*changed(options.simulation.hardware), *changed(options.simulation.engine)):
        raise UsageError(f"{name} needs --simulate: it describes no server")
    server = options.target
    url = server.url if server.url or server.start else measurement.DEFAULT_URL
    unnamed = Target("", url, server.start)
    target = replace(unnamed, label=options.label or unnamed.server)
    with ending_on_signals():
        [found] = CapacitySearches(
            options.servers,
            [target],
            tbt_target=options.tbt_target,
            requests_per_point=options.requests_per_point or _REQUESTS,
        ).run()
    return found


def _simulated(options: CapacityOptions, screen: measurement.Screen) -> CapacityWithRuns:
    servers, requests = options.servers, options.servers.requests
    for unused in (options.target, servers.start, requests, requests.key, servers.results):
        for name in changed(unused):
            if name != "--model":  # the name at the server, or else of the model to simulate
                raise UsageError(f"{name} and --simulate exclude each other: no server is used")
    setup = options.simulation.setup(requests.model, requests.workload.workload, options.tbt_target)
    label = options.label or default_label(setup.description)
    how = servers.search
    load = simulated_load(requests.workload, options.requests_per_point or _SIMULATED_REQUESTS)
    with progress_bar(servers.output.json) as bar:
        task = bar.add_task(label)

        def on_requests(rate: float, ended: int, total: int) -> None:
            bar.update(task, description=f"{label} at {rate:g}/s", completed=ended, total=total)

        def on_point(run: Run, point: Point) -> None:
            screen.log(verdict_line(label, point))

        return find_capacity(
            setup,
            load,
            how.targets(options.tbt_target),
            label,
            resolution=how.resolution,
            start_rate=how.start_rate,
            point_duration=how.point_duration,
            on_point=on_point,
            on_requests=on_requests,
        )


class CapacitySearches:
    """One search for each target, a point of each in turn."""

    def __init__(
        self,
        options: measurement.ServerMeasurement,
        targets: Sequence[Target],
        *,
        tbt_target: float,
        requests_per_point: int,
    ) -> None:
        """Probe the targets and prepare the load.

        Args:
            tbt_target: seconds, for P99 of the time between tokens.
            requests_per_point: to measure at each rate, at least.

        Raises:
            BenchmarkError: an option of the load is missing, contradictory or out of range.
        """
        self.screen = measurement.Screen(quiet=options.output.json)
        self._attempts: Counter[tuple[Target, float, int]] = Counter()
        self._began = time.time()
        self._kept: RunningServer | None = None
        self._options = options
        self._targets = targets
        self._tokens = measurement.Tokens(options.requests)
        self._load = options.requests.load(requests_per_point, self._tokens)
        # A single server is not started just to be probed.
        is_started = len(targets) == 1 and targets[0].command is not None
        self._facts = [] if is_started else options.probe(targets, self.screen)
        # Delays that one server reports cannot be compared with those of one that does not.
        by_ttft = not all(facts.tells_delay for facts in self._facts)
        self._latencies = options.search.targets(tbt_target, by_ttft)

    def run(self) -> list[CapacityWithRuns]:
        """Search until each target has a result.

        Raises:
            BenchmarkError: a server cannot be measured. Finished runs are kept.
        """
        with contextlib.ExitStack() as stack:
            searches = [self._search(target, stack) for target in self._targets]
            unfinished = searches
            try:
                while unfinished:
                    unfinished = [search for search in unfinished if search.step()]
            except KeyboardInterrupt:
                self.screen.warn("interrupted: finished runs are kept, the same command goes on")
                raise
            return [self._finished(search) for search in searches]

    def _finished(self, search: CapacitySearch) -> CapacityWithRuns:
        result, folder = search.result(self._load.num_requests), search.store.folder
        save(folder / RESULT_NAME, result)
        self.screen.log(f"{result.label}: kept in {folder}")
        return CapacityWithRuns(result, runs_of(result, folder))

    def _search(self, target: Target, stack: contextlib.ExitStack) -> CapacitySearch:
        name = f"capacity-{target.label}"
        options, results = self._options.search, self._options.results
        store = SearchStore(results.results, name, self._configuration(target))
        if results.fresh and store.folder.exists():
            until = f"{store.folder.name}-until-{datetime.now():%Y%m%d-%H%M%S}"
            store.folder.rename(store.folder.with_name(until))
        stack.enter_context(store.opened())
        dates: list[float] = []  # of runs from before

        def on_run(run: Run, point: Point) -> None:
            if run.began < self._began:
                dates.append(run.began)
            else:
                self.screen.log(verdict_line(target.label, point))

        search = CapacitySearch(
            Search(options.start_rate, options.resolution, max_halvings=_HALVINGS),
            store,
            self._latencies,
            lambda attempt: self._measure(target, attempt, store.folder / "server.log", stack),
            on_run,
        )
        if dates:
            since = datetime.fromtimestamp(min(dates)).strftime("%Y-%m-%d %H:%M")
            self.screen.warn(
                f"{target.label}: {len(dates)} runs from {since} on are taken from "
                f"{store.folder}; --fresh measures again"
            )
        return search

    @contextlib.contextmanager
    def _running(
        self, target: Target, log: Path, stack: contextlib.ExitStack
    ) -> Iterator[RunningServer]:
        """Yield a running server, started when needed: points of an earlier search need none."""
        if self._kept is not None:
            yield self._kept
            return
        with contextlib.ExitStack() as point:
            # Several alternate, and most machines have memory for one of them at a time.
            is_only = len(self._targets) == 1
            starting = running_server(target, self._options.credentials, log)
            server = (stack if is_only else point).enter_context(starting)
            self._tokens.use(server)
            self._kept = server if is_only else None
            yield server

    def _measure(self, target: Target, attempt: Try, log: Path, stack: contextlib.ExitStack) -> Run:
        rate, repeat = attempt.rate, attempt.repeat
        # Fast servers need many requests: in a short burst, no queue grows for long.
        number = max(self._load.num_requests, math.ceil(rate * self._options.search.point_duration))
        # An invalid run is repeated with other texts, which are in no prefix cache.
        which = target, rate, repeat
        self._attempts[which] += 1
        salt = f"{self._load.salt}/{rate:g}/{repeat}/{self._attempts[which]}"
        seed = self._load.seed + repeat
        load = replace(self._load, num_requests=number, seed=seed, salt=salt)
        with self._running(target, log, stack) as running:
            running.check()
            requests = prepare(load, rate, self._tokens, running.facts.max_model_len)
            early_stopping = EarlyStopping(
                [call.output_tokens for call in requests.calls],
                load.warm_up,
                self._latencies,
                running.facts.tells_delay,
            )
            title = f"{running.label} at {rate:g}/s"
            with self.screen.follow(title, len(requests.calls)) as progress:
                listeners = [early_stopping, *progress]
                return measure(running, requests, self._options.requests.evaluation(), listeners)

    def _configuration(self, target: Target) -> dict[str, Any]:
        """Return everything that a point depends on."""
        load, requests = self._load, self._options.requests
        workload = requests.workload
        return {
            "version": __version__,
            "machine": describe_machine(),
            "server": target.server,
            "url": target.url,
            "model": requests.model,
            "facts": [dataclasses.asdict(facts) for facts in self._facts],
            "no_ignore_eos": not requests.ignore_eos,
            "api": requests.api,
            "tokenizer": workload.tokenizer,
            "workload": load.workload.describe(),
            "file": _digest(workload.workload),
            "requests": load.num_requests,
            "point_duration": self._options.search.point_duration,
            "warm_up": load.warm_up,
            "seed": load.seed,
            "salt": requests.salt,
            "tbt_target": self._latencies.tbt,
            "delay_target": self._latencies.delay,
            "tail_delay_target": self._latencies.tail_delay,
            "timeout": requests.timeout,
            "max_client_lag": requests.max_client_lag,
        }


def verdict_line(label: str, point: Point) -> str:
    """Return how a server did at a rate, for the log."""
    outcome = "meets the target" if point.met else "misses it"
    certainty = "" if point.certain else " (not for certain)"
    return f"{label}: {point.rate:g}/s {outcome}{certainty}: {point.reason}"


def _digest(workload: str | None) -> str | None:
    """Return the hash of a trace: another file of the same name is another workload."""
    if workload is None or not Path(workload).is_file():
        return None
    return hashlib.sha256(Path(workload).read_bytes()).hexdigest()
