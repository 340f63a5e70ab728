"""The paper's evaluation: all experiments by name, and the function that runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from sarathi.errors import SimulationError
from sarathi.simulator.parallel import run_all
from sarathi.simulator.reproduction import capacity_experiments as capacities
from sarathi.simulator.reproduction import iteration_experiments as iterations
from sarathi.simulator.reproduction import load_experiments as loads
from sarathi.simulator.reproduction.experiment import Experiment, ExperimentResult
from sarathi.simulator.reproduction.jobs import run_job
from sarathi.simulator.reproduction.testbeds import Options


@dataclass(frozen=True)
class Study:
    """An experiment that can be asked for by name."""

    summary: str  # one line
    describe: Callable[[Options], Experiment]


STUDIES: Mapping[str, Study] = {
    "stalls": Study("generation stalls over time (Figure 1)", loads.stalls),
    "throughput": Study(
        "throughput of prompts and decodes by batch and chunk (Figures 3 and 4)",
        iterations.throughput,
    ),
    "capacity": Study(
        "load within strict and relaxed targets, four models, two datasets (Figures 10 and 11)",
        capacities.capacity,
    ),
    "latency-by-rate": Study(
        "vLLM's batch sizes against Sarathi's budgets (Figure 12)", loads.latency_by_rate
    ),
    "falcon-parallelism": Study(
        "Falcon-180B over Ethernet: tensor or pipeline parallelism (Figure 13)",
        capacities.falcon_parallelism,
    ),
    "chunking-overhead": Study(
        "how much longer prompts take in chunks (Figure 14)", iterations.chunking_overhead
    ),
    "ablation": Study("chunks, hybrid batches, and both (Table 4)", loads.ablation),
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
    experiments = [STUDIES[name].describe(options) for name in dict.fromkeys(names)]
    jobs = list(dict.fromkeys(job for experiment in experiments for job in experiment.jobs))
    finished = 0

    def on_result(index: int, result: object) -> None:
        nonlocal finished
        finished += 1
        on_progress(finished, len(jobs), jobs[index].title)

    results = run_all([partial(run_job, job) for job in jobs], on_result=on_result, workers=workers)
    found = dict(zip(jobs, results, strict=True))
    return [experiment.result(found) for experiment in experiments]
