"""`sarathi simulate`: a load on hardware that need not be there."""

from __future__ import annotations

from typing import Annotated

import msgspec

from sarathi.cli.measurement import Label, RateOption, RunOutput, Screen, WorkloadOptions
from sarathi.cli.simulation import (
    ModelName,
    SimulationOptions,
    default_label,
    progress_bar,
    simulated_load,
)
from sarathi.options import Count, Option, Seconds
from sarathi.simulator.simulated_run import simulated_run
from sarathi.telemetry import Targets
from sarathi.telemetry.iteration_log import IterationLine, line_of
from sarathi.telemetry.recorder import IterationRecord


class SimulateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the command."""

    model: ModelName
    label: Annotated[
        Label | None, Option("its name in reports", default="model, device, policy")
    ] = None
    rate: RateOption = None
    num_requests: Annotated[Count, Option("to measure, after the warm-up")] = 1000
    tbt_target: Annotated[
        Seconds | None,
        Option("longest time between two tokens: for the engine's budget, and for goodput"),
    ] = None
    ttft_target: Annotated[
        Seconds | None, Option("time to first token: for --order slack, and for goodput")
    ] = None
    show_memory: Annotated[bool, Option("also print what the memory is used for")] = False
    simulation: SimulationOptions
    workload: WorkloadOptions
    output: RunOutput


def run(options: SimulateOptions) -> int:
    """Simulate a run; return the exit code."""
    output = options.output
    output.check()
    setup = options.simulation.setup(
        options.model, options.workload.workload, options.tbt_target, options.ttft_target
    )
    load = simulated_load(options.workload, options.num_requests)
    targets = Targets(options.ttft_target, options.tbt_target)
    screen = Screen(quiet=output.json)
    if options.show_memory:
        screen.log(setup.memory)
    iterations: list[IterationLine] = []
    unit = setup.config.budget_unit

    def keep(record: IterationRecord) -> None:
        iterations.append(line_of(record, record.begin, 0.0, unit, []))

    name = options.label or default_label(setup.description)
    with progress_bar(output.json) as bar:
        task = bar.add_task(name, total=load.num_requests + load.warm_up)
        result = simulated_run(
            setup,
            load,
            options.rate,
            name,
            targets=None if targets == Targets() else targets,
            on_iteration=keep if output.report is not None else None,
            on_progress=lambda ended, now: bar.update(task, completed=ended),
        )
    output.publish(result, screen, iterations)
    return 0
