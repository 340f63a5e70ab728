"""Compare simulations of this machine with a real server on it.

Usage: python -m perf.real_versus_simulated [FOLDER]

The machine is measured (as `sarathi calibrate` does), and the capacities of two policies are
searched with real servers, unless FOLDER (benchmark-results/DATE) has them from `perf.performance`.
Each real run that was not stopped is then simulated with the same requests at the same times, and
so is the search. If interrupted, the same command continues. It takes up to 45 minutes, in which
the machine should be idle otherwise.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from perf.performance import (
    OUTPUTS,
    PROMPTS,
    REQUESTS,
    SERVERS,
    TARGET,
    default_folder,
    searched,
)
from perf.report import MODEL, Figure, show
from sarathi.bench.report import CapacityWithRuns
from sarathi.bench.results import Run, describe_machine
from sarathi.bench.target import ending_on_signals
from sarathi.bench.workload.workload import Load, Workload
from sarathi.cli.measurement import Screen, SearchOptions
from sarathi.engine.config import EngineConfig
from sarathi.simulator.setup import Setup
from sarathi.simulator.simulated_run import find_capacity, simulated_run
from sarathi.simulator.this_cpu.measure_machine import MachineMeasurement
from sarathi.simulator.this_cpu.measured_machine import (
    MeasuredMachine,
    cpu_setup,
    load_machine,
    save_machine,
)

_WARM_UP = 8
_ERROR = 0.15  # target, of the median TBT and of the capacity
_CONFIGS = (  # of the servers, in their order
    EngineConfig(tbt_target=TARGET),
    EngineConfig(policy="vllm", token_budget=8192),
)
_FIGURES: dict[str, Callable[[Run], float | None]] = {
    "median TBT": lambda run: run.summary.tbt.p50,
    "P99 TBT": lambda run: run.summary.tbt.p99,
    "median TTFT": lambda run: run.summary.ttft.p50,
    "P90 TTFT": lambda run: run.summary.ttft.p90,
}


def _workload() -> Workload:
    return Workload.from_options(prompt_lengths=PROMPTS, output_lengths=OUTPUTS)


def measured(folder: Path, screen: Screen) -> MeasuredMachine:
    """Return the measurement of this machine, that of an earlier try if there was one."""
    path = folder / "this-cpu.json"
    if not path.exists():
        workload = _workload()
        machine = MachineMeasurement(
            MODEL, workload, rate=1.0, seconds=90.0, options="", start_timeout=600.0,
            follow=screen.follow,
        ).run()  # fmt: skip
        save_machine(machine, path)
    return load_machine(path, MODEL, describe_machine())


def predicted(setup: Setup, runs: list[Run]) -> dict[str, list[float]]:
    """Return simulated over real, minus 1, of each figure and run."""
    errors: dict[str, list[float]] = {name: [] for name in _FIGURES}
    workload = _workload()
    for run in runs:
        load = Load(workload, len(run.records), _WARM_UP, run.seed)
        simulated = simulated_run(setup, load, run.rate, run.label)
        for name, read in _FIGURES.items():
            real, found = read(run), read(simulated)
            if real and found:
                errors[name].append(found / real - 1)
                both = f"{1000 * real:.0f} ms, {1000 * found:.0f} predicted"
                print(f"  {run.rate:g}/s {name}: {both}")
    return errors


def compared(name: str, setup: Setup, found: CapacityWithRuns) -> list[Figure]:
    """Return the figures of a server's real runs and capacity, compared with the simulated."""
    figures = []
    for figure, errors in predicted(setup, [run for run in found.runs if not run.stopped]).items():
        if errors:
            target = _ERROR if figure == "median TBT" else None
            error = median(map(abs, errors))
            figures.append(Figure(f"{name}: error of {figure}", error, "%", target))
    search = SearchOptions()
    load = Load(_workload(), REQUESTS, _WARM_UP, 0)
    real = found.capacity.capacity
    simulated = find_capacity(
        setup,
        load,
        search.targets(TARGET),
        name,
        resolution=search.resolution,
        start_rate=search.start_rate,
        point_duration=search.point_duration,
    ).capacity.capacity
    if real and simulated:
        error = abs(simulated / real - 1)
        figures.append(Figure(f"{name}: capacity", real, "/s"))
        figures.append(Figure(f"{name}: capacity predicted", simulated, "/s"))
        figures.append(Figure(f"{name}: error of the capacity", error, "%", _ERROR))
    return figures


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder()
    figures: list[Figure] = []
    with ending_on_signals():
        machine = measured(folder, Screen(quiet=False))
        print(f"iterations of {MODEL} are predicted {machine.error}")
        for server, config in zip(SERVERS, _CONFIGS, strict=True):
            begin = time.monotonic()
            found = searched(server, folder)
            minutes = (time.monotonic() - begin) / 60
            figures.append(Figure(f"{server.label}: real search", minutes, "min", 20))
            figures += compared(server.label, cpu_setup(machine, config), found)
    show("Simulated against real, on this machine", figures)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
