"""Measure this machine for the simulator, or check its cost model of GPUs against measurements."""

from __future__ import annotations

import argparse
from pathlib import Path

from sarathi.cli.engine_options import duration, new_file, utf8
from sarathi.cli.keys import add_api_key_arguments, api_key
from sarathi.cli.load_options import add_start_timeout, request_rate
from sarathi.errors import UsageError

_PROMPTS, _OUTPUTS = "lognormal:430,1400", "lognormal:60,130"  # tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        type=utf8,
        metavar="MODEL",
        help="start `sarathi serve MODEL`, load it, and keep what its iterations cost for "
        "--device this-cpu",
    )
    parser.add_argument(
        "--rate",
        type=request_rate,
        default=1.0,
        metavar="N",
        help="requests per second that are sent to it (default: %(default)g)",
    )
    parser.add_argument(
        "--seconds",
        type=duration,
        default=90.0,
        metavar="DURATION",
        help="of load, for each of two policies (default: 90s)",
    )
    parser.add_argument(
        "--prompt-lengths",
        type=utf8,
        default=_PROMPTS,
        metavar="LENGTHS",
        help="of what is sent, as in `sarathi bench` (default: %(default)s)",
    )
    parser.add_argument(
        "--output-lengths",
        type=utf8,
        default=_OUTPUTS,
        metavar="LENGTHS",
        help="likewise (default: %(default)s)",
    )
    parser.add_argument(
        "--serve-options",
        type=utf8,
        default="",
        metavar="TEXT",
        help='more for `sarathi serve`, such as "--threads 2 --precision f32"',
    )
    add_start_timeout(parser)
    add_api_key_arguments(parser)
    parser.add_argument(
        "--output",
        type=new_file,
        metavar="FILE.json",
        help="what was measured (default: where --device this-cpu looks for it)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="instead: profiles of GPUs and networks, see docs/cost-model.md, to check the "
        "constants against",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    if (args.model is None) == (args.data is None):
        raise UsageError("either MODEL or --data FOLDER is needed: what is to be measured?")
    return _check(args) if args.model is None else _measure(args)


def _measure(args: argparse.Namespace) -> int:
    from sarathi.bench.server_process import ending_on_signals
    from sarathi.bench.workload.workload import Workload
    from sarathi.cli.measuring import Screen
    from sarathi.cli.reporting import print_json
    from sarathi.simulator.this_cpu.measure_machine import measure_machine
    from sarathi.simulator.this_cpu.measured_machine import (
        NOTEWORTHY,
        new_machine_path,
        save_machine,
    )

    screen = Screen(quiet=args.json)
    workload = Workload.from_options(
        prompt_lengths=args.prompt_lengths, output_lengths=args.output_lengths
    )
    path = new_machine_path(args.model) if args.output is None else Path(args.output)
    screen.say(f"measuring {args.model} on this machine, which should do nothing else meanwhile")
    with ending_on_signals():
        machine = measure_machine(
            args.model,
            workload,
            rate=args.rate,
            seconds=args.seconds,
            options=args.serve_options,
            start_timeout=args.start_timeout,
            follow=screen.follow,
            api_key=api_key(args),
            on_progress=screen.warn,
        )
    save_machine(machine, path)
    if args.json:
        fields = {"model": machine.model, "machine": machine.machine, "file": str(path)}
        found = {"cost": machine.noise.cost, "error": machine.error, "others": machine.others}
        print_json(fields | found)
    else:
        if machine.others is not None and machine.others > NOTEWORTHY:
            print(
                f"other programs had {machine.others:.0%} of the processors: measured on a quiet "
                "machine, predictions are better"
            )
        print(f"iterations are predicted {machine.error}; kept in {path}")
    return 0


def _check(args: argparse.Namespace) -> int:
    from sarathi.simulator.calibration.error_table import as_json, as_text, constants, error_table

    errors, fitted = error_table(args.data), constants(args.data)
    print(as_json(errors, fitted) if args.json else as_text(errors, fitted))
    return 0
