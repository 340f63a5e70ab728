"""`sarathi capacity`: the highest request rate that a server takes within a latency target."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import msgspec

from sarathi.bench.report import CapacityWithRuns
from sarathi.bench.results import Point, Run
from sarathi.bench.target import Target, ending_on_signals
from sarathi.bench.terminal import print_capacities
from sarathi.cli.capacity_searches import CapacitySearches, verdict_line
from sarathi.cli.measurement import (
    DEFAULT_URL,
    REQUESTS_PER_POINT,
    Label,
    Screen,
    ServerMeasurement,
    print_json,
    save_report,
)
from sarathi.cli.simulation import SimulationOptions, default_label, progress_bar, simulated_load
from sarathi.errors import UsageError
from sarathi.options import Count, Option, Seconds, changed
from sarathi.simulator.simulated_run import SimulatedSearch, find_capacity

_REQUESTS = 30  # those of slow servers; others get more
_SIMULATED_REQUESTS = 2048  # as in the paper


class CapacityTarget(msgspec.Struct, frozen=True, kw_only=True):
    """The server to measure."""

    url: Annotated[
        str | None, Option("the server", default=f"where --start listens, or else {DEFAULT_URL}")
    ] = None
    start: Annotated[
        str | None,
        Option("start the server with this command, and stop it at the end", metavar="COMMAND"),
    ] = None


class CapacityOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the command."""

    target: CapacityTarget
    label: Annotated[
        Label | None, Option("its name in reports", default="the command or the address")
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
        replace(REQUESTS_PER_POINT, default=f"{_REQUESTS}, or {_SIMULATED_REQUESTS} simulated"),
    ] = None
    servers: ServerMeasurement
    simulation: SimulationOptions


def run(options: CapacityOptions) -> int:
    """Search for the capacity; return 1 where no rate meets the target."""
    output = options.servers.output
    if options.servers.requests.workload.arrivals == "trace":
        raise UsageError("--arrivals trace cannot be searched: a trace has one rate")
    output.check()
    screen = Screen(quiet=output.json)
    found = _simulated(options, screen) if options.simulate else _measured(options)
    result = found.capacity
    if output.json:
        print_json(result)
    else:
        print_capacities([result])
    save_report(output.report, [], [found], screen)
    return 0 if result.capacity is not None else 1


def _measured(options: CapacityOptions) -> CapacityWithRuns:
    for name in (*changed(options.simulation.hardware), *changed(options.simulation.engine)):
        raise UsageError(f"{name} needs --simulate: it describes no server")
    server = options.target
    url = server.url if server.url or server.start else DEFAULT_URL
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


def _simulated(options: CapacityOptions, screen: Screen) -> CapacityWithRuns:
    servers, requests = options.servers, options.servers.requests
    for unused in (options.target, servers.start, requests, requests.key, servers.results):
        for name in changed(unused):
            if name != "--model":  # the name at the server, or else of the model to simulate
                raise UsageError(f"{name} and --simulate exclude each other: no server is used")
    setup = options.simulation.setup(requests.model, requests.workload.workload, options.tbt_target)
    label = options.label or default_label(setup.description)
    how = servers.search
    targets = how.targets(options.tbt_target)
    search = SimulatedSearch(targets, how.resolution, how.start_rate, how.point_duration)
    load = simulated_load(requests.workload, options.requests_per_point or _SIMULATED_REQUESTS)
    with progress_bar(servers.output.json) as bar:
        task = bar.add_task(label)

        def on_requests(rate: float, ended: int, total: int) -> None:
            bar.update(task, description=f"{label} at {rate:g}/s", completed=ended, total=total)

        def on_point(run: Run, point: Point) -> None:
            screen.log(verdict_line(label, point))

        return find_capacity(setup, load, search, label, on_point=on_point, on_requests=on_requests)
