"""Does the simulator foretell what a server on this machine does?

Usage: python -m benchmarks.real_versus_simulated [FOLDER]

The machine is measured (as `sarathi calibrate` does), then the capacities of two policies are
searched for real, as `sarathi capacity --start` does. Each real run that went to its end is then
simulated with the same requests at the same times, and so is the search. Real runs are kept in
FOLDER (benchmark-results/real-DATE); interrupted, the same command goes on. Takes up to an hour, in
which the machine should do nothing else.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median

from benchmarks.report import MODEL, Figure, show
from sarathi.benchmark.capacity.verdict import CapacityTargets
from sarathi.benchmark.contender import Contender
from sarathi.benchmark.launch import ending_on_signals
from sarathi.benchmark.machine import describe_machine
from sarathi.benchmark.report import CapacityWithRuns
from sarathi.benchmark.results import Run
from sarathi.benchmark.workload.plan import Workload
from sarathi.cli import capacity
from sarathi.cli.load_options import SearchOptions
from sarathi.cli.measuring import Screen
from sarathi.cli.searching import Searches
from sarathi.engine.config import EngineConfig
from sarathi.simulator.capacity import SearchTerms, find_capacity
from sarathi.simulator.run import SimulatedLoad, simulated_run
from sarathi.simulator.setup import Setup
from sarathi.simulator.this_cpu.cpu_setup import cpu_setup
from sarathi.simulator.this_cpu.machine_file import MeasuredMachine, load_machine, save_machine
from sarathi.simulator.this_cpu.measure import measure_machine

_TARGET = 0.2  # seconds
_LENGTHS = {"prompt_lengths": "lognormal:430,1400", "output_lengths": "lognormal:60,130"}
_REQUESTS, _WARM_UP = 30, 8
_ERROR = 0.15  # that is granted, of the median TBT and of the capacity

_POLICIES = {
    "sarathi": ("--tbt-target 200ms", EngineConfig(tbt_target=_TARGET)),
    "vllm": (
        "--policy vllm --token-budget 8192",
        EngineConfig(policy="vllm", token_budget=8192),
    ),
}
_FIGURES: dict[str, Callable[[Run], float | None]] = {
    "median TBT": lambda run: run.summary.tbt.p50,
    "P99 TBT": lambda run: run.summary.tbt.p99,
    "median TTFT": lambda run: run.summary.ttft.p50,
    "P90 TTFT": lambda run: run.summary.ttft.p90,
}


def measured(folder: Path, screen: Screen) -> MeasuredMachine:
    """This machine, from an earlier try if there was one."""
    path = folder / "this-cpu.json"
    if not path.exists():
        workload = Workload.from_options(**_LENGTHS)
        machine = measure_machine(
            MODEL, workload, rate=1.0, seconds=90.0, options="", patience=600.0,
            follow=screen.follow,
        )  # fmt: skip
        save_machine(machine, path)
    return load_machine(path, MODEL, describe_machine())


def searched(folder: Path, options: str) -> tuple[CapacityWithRuns, float]:
    """The real search by its command line, and the seconds it took."""
    parser = argparse.ArgumentParser()
    capacity.add_arguments(parser)
    lengths = [f"--{name.replace('_', '-')}={text}" for name, text in _LENGTHS.items()]
    words = ["--tbt-target", "200ms", "--results", str(folder), *lengths]
    args = parser.parse_args([*words, "--requests-per-point", str(_REQUESTS)])
    command = f"sarathi serve {MODEL} --port 8100 {options}"
    begin = time.monotonic()
    [found] = Searches(args, [Contender(options, None, command)]).run()
    return found, time.monotonic() - begin


def foretold(setup: Setup, runs: list[Run]) -> dict[str, list[float]]:
    """Simulated over real, minus 1, of each figure and run."""
    errors: dict[str, list[float]] = {name: [] for name in _FIGURES}
    workload = Workload.from_options(**_LENGTHS)
    for run in runs:
        load = SimulatedLoad(workload, len(run.records), _WARM_UP, run.seed)
        simulated = simulated_run(setup, load, run.rate, run.label)
        for name, read in _FIGURES.items():
            real, found = read(run), read(simulated)
            if real and found:
                errors[name].append(found / real - 1)
                print(f"  {run.rate:g}/s {name}: {1000 * real:.0f} ms, {1000 * found:.0f} foretold")
    return errors


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else f"benchmark-results/real-{date.today()}")
    screen = Screen(quiet=False)
    with ending_on_signals():
        machine = measured(folder, screen)
        print(f"iterations of {MODEL} are predicted {machine.error}")
        figures = []
        for policy, (options, config) in _POLICIES.items():
            found, took = searched(folder, options)
            setup = cpu_setup(machine, config)
            for name, errors in foretold(setup, [r for r in found.runs if not r.stopped]).items():
                if errors:
                    target = _ERROR if name == "median TBT" else None
                    error = median(map(abs, errors))
                    figures.append(Figure(f"{policy}: error of {name}", error, "%", target))
            load = SimulatedLoad(Workload.from_options(**_LENGTHS), _REQUESTS, _WARM_UP, 0)
            search = SearchOptions()
            terms = SearchTerms(
                CapacityTargets(_TARGET), search.resolution, search.start_rate,
                search.point_duration,
            )  # fmt: skip
            real = found.capacity.capacity
            simulated = find_capacity(setup, load, terms, policy).capacity.capacity
            figures.append(Figure(f"{policy}: real search", took / 60, "min", 20))
            if real and simulated:
                figures.append(Figure(f"{policy}: capacity", real, "/s"))
                figures.append(Figure(f"{policy}: capacity foretold", simulated, "/s"))
                error = abs(simulated / real - 1)
                figures.append(Figure(f"{policy}: error of the capacity", error, "%", _ERROR))
    show("Simulated against real, on this machine", figures)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
