"""All experiments by name, and how they are done together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sarathi.errors import SimulationError
from sarathi.simulator.parallel import run_all
from sarathi.simulator.reproduction import (
    ablation,
    chunking_overhead,
    falcon_parallelism,
    stalls,
    throughput,
)
from sarathi.simulator.reproduction import budgets_by_rate as latency_by_rate
from sarathi.simulator.reproduction import capacity_gains as capacity
from sarathi.simulator.reproduction.experiment import Experiment
from sarathi.simulator.reproduction.jobs import Job, Results, work
from sarathi.simulator.reproduction.settings import Options


@dataclass(frozen=True)
class Study:
    """What has to be simulated, and what is made of it."""

    summary: str  # in a line
    jobs: Callable[[Options], list[Job]]
    present: Callable[[Options, Results], Experiment]


STUDIES: Mapping[str, Study] = {
    "stalls": Study("generation stalls over time (Figure 1)", stalls.jobs, stalls.present),
    "throughput": Study(
        "throughput of prompts and decodes by batch and chunk (Figures 3 and 4)",
        throughput.jobs,
        throughput.present,
    ),
    "capacity": Study(
        "load within strict and relaxed targets, four models, two datasets (Figures 10 and 11)",
        capacity.jobs,
        capacity.present,
    ),
    "latency-by-rate": Study(
        "vLLM's batch sizes against Sarathi's budgets (Figure 12)",
        latency_by_rate.jobs,
        latency_by_rate.present,
    ),
    "falcon-parallelism": Study(
        "Falcon-180B over Ethernet: tensor or pipeline parallelism (Figure 13)",
        falcon_parallelism.jobs,
        falcon_parallelism.present,
    ),
    "chunking-overhead": Study(
        "how much longer prompts take in chunks (Figure 14)",
        chunking_overhead.jobs,
        chunking_overhead.present,
    ),
    "ablation": Study(
        "chunks, hybrid batches, and both (Table 4)", ablation.jobs, ablation.present
    ),
}

Done = Callable[[int, int, str], None]  # jobs that are done, jobs in all, the last one's title


def reproduce(
    names: Sequence[str],
    options: Options,
    *,
    done: Done = lambda number, total, title: None,
    workers: int | None = None,
) -> list[Experiment]:
    """Do experiments, on all cores; what several of them need is simulated once.

    Args:
        names: keys of `STUDIES`.
        done: is called after each simulation.
        workers: processes; None: one for each core.

    Raises:
        SimulationError: a name is unknown.
        BenchmarkError: the trace cannot be read.
    """
    for name in names:
        if name not in STUDIES:
            raise SimulationError(f"{name} is no experiment, expected one of {', '.join(STUDIES)}")
    wanted = {name: STUDIES[name] for name in names}
    jobs = list(dict.fromkeys(job for study in wanted.values() for job in study.jobs(options)))
    number = 0

    def told(index: int, result: object) -> None:
        nonlocal number
        number += 1
        done(number, len(jobs), jobs[index].title)

    found = dict(zip(jobs, run_all(work, jobs, done=told, workers=workers), strict=True))
    return [study.present(options, found) for study in wanted.values()]
