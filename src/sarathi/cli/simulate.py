"""Simulate a load on hardware that need not be there."""

from __future__ import annotations

import argparse
from pathlib import Path

from sarathi.cli.engine_options import duration, new_file, positive, utf8
from sarathi.cli.load_options import (
    add_output_arguments,
    add_workload_arguments,
    label,
    request_rate,
)
from sarathi.cli.simulation_options import add_simulation_arguments
from sarathi.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        type=utf8,
        required=True,
        metavar="NAME",
        help="a built-in model such as mistral-7b, or the path of a config.json",
    )
    parser.add_argument(
        "--label",
        type=label,
        metavar="TEXT",
        help="its name in reports (default: model, device, policy)",
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
        default=1000,
        metavar="N",
        help="to measure, after the warm-up (default: %(default)s)",
    )
    parser.add_argument(
        "--tbt-target",
        type=duration,
        metavar="DURATION",
        help="longest time between two tokens: for the engine's budget, and for goodput",
    )
    parser.add_argument(
        "--ttft-target",
        type=duration,
        metavar="DURATION",
        help="time to first token: for --order slack, and for goodput",
    )
    add_simulation_arguments(parser)
    add_workload_arguments(parser)
    add_output_arguments(parser)
    parser.add_argument(
        "--save", type=new_file, metavar="FILE.json", help="all times, for `sarathi report`"
    )
    parser.add_argument(
        "--show-memory", action="store_true", help="also print what the memory is used for"
    )


def run(args: argparse.Namespace) -> int:
    from sarathi.bench.report import check_reports_can_be_made
    from sarathi.bench.result_files import save
    from sarathi.bench.terminal_tables import print_run, run_fields
    from sarathi.cli.measuring import Screen
    from sarathi.cli.reporting import print_json, report
    from sarathi.cli.simulating import default_label, progress_bar, setup_of, simulated_load
    from sarathi.engine.recorders import budget_unit
    from sarathi.simulator.simulated_run import simulated_run
    from sarathi.telemetry import Targets
    from sarathi.telemetry.iteration_log import IterationLine, line_of
    from sarathi.telemetry.recorder import IterationRecord

    if args.report is not None:
        if args.report == args.save:
            raise UsageError("--save and --report are the same file")
        check_reports_can_be_made()
    setup = setup_of(args, args.tbt_target, args.ttft_target)
    load = simulated_load(args, args.num_requests)
    targets = Targets(args.ttft_target, args.tbt_target)
    screen = Screen(quiet=args.json)
    if args.show_memory:
        screen.say(setup.memory)
    lines: list[IterationLine] = []
    unit = budget_unit(setup.config)

    def keep(record: IterationRecord) -> None:
        lines.append(line_of(record, record.begin, 0.0, unit, []))

    name = args.label or default_label(setup.description)
    with progress_bar(args.json) as bar:
        task = bar.add_task(name, total=load.num_requests + load.warm_up)
        result = simulated_run(
            setup,
            load,
            args.rate,
            name,
            targets=None if targets == Targets() else targets,
            on_iteration=keep if args.report is not None else None,
            on_progress=lambda ended, now: bar.update(task, completed=ended),
        )
    if args.json:
        print_json(run_fields(result))
    else:
        print_run(result)
    if args.save is not None:
        save(Path(args.save), result)
    report(args.report, [result], [], screen, lines)
    return 0
