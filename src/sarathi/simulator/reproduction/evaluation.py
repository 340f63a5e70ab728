"""The paper's evaluation: all experiments by name, and the function that runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from sarathi.errors import SimulationError
from sarathi.simulator.parallel import run_all
from sarathi.simulator.reproduction import capacity_experiments as capacities
from sarathi.simulator.reproduction import iteration_experiments as iterations
from sarathi.simulator.reproduction import load_experiments as loads
from sarathi.simulator.reproduction.experiment import Experiment, ExperimentResult
from sarathi.simulator.reproduction.jobs import run_job
from sarathi.simulator.reproduction.testbeds import Options

STUDIES: Mapping[str, Callable[[Options], Experiment]] = {
    "stalls": loads.stalls,
    "throughput": iterations.throughput,
    "capacity": capacities.capacity,
    "latency-by-rate": loads.latency_by_rate,
    "falcon-parallelism": capacities.falcon_parallelism,
    "chunking-overhead": iterations.chunking_overhead,
    "ablation": loads.ablation,
}

OnProgress = Callable[[int, int, str], None]  # finished jobs, all jobs, title of the last one


def reproduce(
    names: Sequence[str],
    options: Options,
    *,
    on_progress: OnProgress = lambda finished, total, title: None,
    workers: int | None = None,
) -> list[ExperimentResult]:
    """Run experiments on all cores; what several of them need is simulated once.

    Args:
        names: keys of `STUDIES`.
        on_progress: called after each simulation.
        workers: processes; None: one for each core.

    Raises:
        SimulationError: a name is unknown.
        BenchmarkError: the trace cannot be read.
    """
    for name in names:
        if name not in STUDIES:
            raise SimulationError(f"{name} is no experiment, expected one of {', '.join(STUDIES)}")
    experiments = [STUDIES[name](options) for name in dict.fromkeys(names)]
    jobs = list(dict.fromkeys(job for experiment in experiments for job in experiment.jobs))
    finished = 0

    def on_result(index: int, result: object) -> None:
        nonlocal finished
        finished += 1
        on_progress(finished, len(jobs), jobs[index].title)

    results = run_all([partial(run_job, job) for job in jobs], on_result=on_result, workers=workers)
    found = dict(zip(jobs, results, strict=True))
    return [experiment.result(found) for experiment in experiments]
