"""`sarathi calibrate`: measure this machine for the simulator, or check its cost model of GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from sarathi.bench.target import ending_on_signals
from sarathi.bench.workload.workload import Workload
from sarathi.cli.keys import ClientKey
from sarathi.cli.measurement import Rate, Screen, ServerStart, print_json
from sarathi.errors import UsageError
from sarathi.options import NewFile, Option, Seconds
from sarathi.simulator.calibration.studies import as_json, as_text, constants, error_table
from sarathi.simulator.this_cpu.measure_machine import MachineMeasurement
from sarathi.simulator.this_cpu.measured_machine import NOTEWORTHY, machine_path, save_machine


class CalibrateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the command."""

    model: Annotated[
        str | None,
        Option(
            "start `sarathi serve MODEL`, load it, and keep what its iterations cost for "
            "--device this-cpu",
            metavar="MODEL",
            positional=True,
        ),
    ] = None
    rate: Annotated[Rate, Option("requests per second that are sent to it", metavar="N")] = 1.0
    seconds: Annotated[Seconds, Option("duration of the load, for each of two policies")] = 90.0
    prompt_lengths: Annotated[
        str, Option("lengths of prompts, as in `sarathi bench`", metavar="LENGTHS")
    ] = "lognormal:430,1400"
    output_lengths: Annotated[str, Option("lengths of outputs", metavar="LENGTHS")] = (
        "lognormal:60,130"
    )
    serve_options: Annotated[
        str, Option('more for `sarathi serve`, such as "--threads 2 --precision f32"')
    ] = ""
    output: Annotated[
        NewFile | None,
        Option("the result", default="where --device this-cpu looks for it", metavar="FILE.json"),
    ] = None
    data: Annotated[
        Path | None,
        Option(
            "instead: profiles of GPUs and networks, see docs/cost-model.md, to check the "
            "constants against",
            metavar="FOLDER",
        ),
    ] = None
    json: Annotated[bool, Option("print one JSON object")] = False
    server: ServerStart
    key: ClientKey


def run(options: CalibrateOptions) -> int:
    """Measure or check; return the exit code."""
    if (options.model is None) == (options.data is None):
        raise UsageError("either MODEL or --data FOLDER is needed: what is to be measured?")
    if options.data is not None:
        errors, fitted = error_table(options.data), constants(options.data)
        print((as_json if options.json else as_text)(errors, fitted))
        return 0
    assert options.model is not None
    return _measure(options.model, options)


def _measure(model: str, options: CalibrateOptions) -> int:
    screen = Screen(quiet=options.json)
    workload = Workload.from_options(
        prompt_lengths=options.prompt_lengths, output_lengths=options.output_lengths
    )
    path = machine_path(model, new=True) if options.output is None else Path(options.output)
    screen.log(f"measuring {model} on this machine, which should do nothing else meanwhile")
    with ending_on_signals():
        machine = MachineMeasurement(
            model,
            workload,
            rate=options.rate,
            seconds=options.seconds,
            options=options.serve_options,
            start_timeout=options.server.start_timeout,
            follow=screen.follow,
            api_key=options.key.read(),
            on_progress=screen.warn,
        ).run()
    save_machine(machine, path)
    if options.json:
        fields = {"model": machine.model, "machine": machine.machine, "file": str(path)}
        found = {"cost": machine.noise.cost, "error": machine.error, "others": machine.others}
        print_json(fields | found)
        return 0
    if machine.others is not None and machine.others > NOTEWORTHY:
        print(
            f"other programs had {machine.others:.0%} of the processors: measured on a quiet "
            "machine, predictions are better"
        )
    print(f"iterations are predicted {machine.error}; kept in {path}")
    return 0
