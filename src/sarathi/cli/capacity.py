"""`sarathi capacity`: the highest request rate that a server takes within a latency target."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Annotated

import msgspec

from sarathi.bench.report import CapacityWithRuns
from sarathi.bench.server_process import ending_on_signals
from sarathi.bench.target import Target
from sarathi.bench.terminal import print_capacities
from sarathi.cli.arguments import add_options, build, given_options, option_name
from sarathi.cli.capacity_searches import CapacitySearches
from sarathi.cli.keys import ClientKey
from sarathi.cli.measurement import (
    DEFAULT_URL,
    REQUESTS_PER_POINT,
    Label,
    OutputOptions,
    RequestOptions,
    ResultOptions,
    Screen,
    SearchOptions,
    ServerStart,
    WorkloadOptions,
    add_request_arguments,
    print_json,
    save_report,
)
from sarathi.cli.simulation import (
    add_simulation_arguments,
    default_label,
    given_simulation_options,
    make_setup,
    simulated_capacity,
)
from sarathi.errors import UsageError
from sarathi.options import Count, Option, Seconds, declarations

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
    """The options of the command alone."""

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_options(parser, CapacityTarget, CapacityOptions, ResultOptions, SearchOptions)
    add_request_arguments(parser)
    add_simulation_arguments(parser)
    add_options(parser, ServerStart, OutputOptions)


def run(args: argparse.Namespace) -> int:
    """Search for the capacity; return 1 where no rate meets the target."""
    output = build(OutputOptions, args)
    if build(WorkloadOptions, args).arrivals == "trace":
        raise UsageError("--arrivals trace cannot be searched: a trace has one rate")
    output.check_report()
    options = build(CapacityOptions, args)
    found = _simulated(args, options) if options.simulate else _measured(args, options)
    result = found.capacity
    if output.json:
        print_json(result)
    else:
        print_capacities([result])
    save_report(output.report, [], [found], Screen(quiet=output.json))
    return 0 if result.capacity is not None else 1


def _measured(args: argparse.Namespace, options: CapacityOptions) -> CapacityWithRuns:
    for name in given_simulation_options(args):
        raise UsageError(f"{name} needs --simulate: it describes no server")
    server = build(CapacityTarget, args)
    url = server.url if server.url or server.start else DEFAULT_URL
    unnamed = Target("", url, server.start)
    target = replace(unnamed, label=options.label or unnamed.server)
    with ending_on_signals():
        [found] = CapacitySearches(
            args,
            [target],
            tbt_target=options.tbt_target,
            requests_per_point=options.requests_per_point or _REQUESTS,
        ).run()
    return found


def _simulated(args: argparse.Namespace, options: CapacityOptions) -> CapacityWithRuns:
    for cls in (CapacityTarget, ServerStart, RequestOptions, ClientKey, ResultOptions):
        given = given_options(args, cls)
        for each in declarations(cls):
            if given.get(each.field, each.default) == each.default:
                continue
            # The name at the server is also that of the model to simulate.
            if each.key != "model":
                name = option_name(cls, each.field)
                raise UsageError(f"{name} and --simulate exclude each other: no server is used")
    setup = make_setup(args, options.tbt_target, None)
    return simulated_capacity(
        args,
        setup,
        options.label or default_label(setup.description),
        tbt_target=options.tbt_target,
        num_requests=options.requests_per_point or _SIMULATED_REQUESTS,
    )
