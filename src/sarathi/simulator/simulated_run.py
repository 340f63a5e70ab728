"""One simulated run, with the result of a benchmark."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sarathi.bench.results import Lag, Run, Simulation
from sarathi.bench.workload.workload import Workload
from sarathi.simulator.setup import Setup
from sarathi.simulator.simulation import OnBatch, OnIteration, OnProgress, simulate
from sarathi.telemetry import Targets

_NO_LAG = Lag(p50=0.0, p99=0.0, max=0.0, cpu=0.0)  # the client is on the virtual clock, too
_HOUR = 3600.0


@dataclass(frozen=True)
class SimulatedLoad:
    """The requests that are sent; their rate is given separately."""

    workload: Workload
    num_requests: int  # to be measured
    warm_up: int  # requests before them
    seed: int


def simulated_run(
    setup: Setup,
    load: SimulatedLoad,
    rate: float | None,
    label: str,
    *,
    targets: Targets | None = None,
    most_records: int = 4096,
    on_progress: OnProgress | None = None,
    on_batch: OnBatch | None = None,
    on_iteration: OnIteration | None = None,
) -> Run:
    """Simulate a load, and return the result as a benchmark would.

    Args:
        rate: requests per second, of all replicas together; None for a trace's own times.
        targets, most_records, on_progress, on_batch, on_iteration: see `simulate`.

    Raises:
        BenchmarkError: the workload cannot be made at this rate or from this file.
    """
    workload = load.workload
    plan = workload.plan(rate, load.num_requests, load.warm_up, load.seed, setup.max_model_len)
    began = time.time()
    outcome = simulate(
        setup, plan, load.seed, targets, most_records, on_progress, on_batch, on_iteration
    )
    devices = setup.num_replicas * setup.devices_per_replica
    description, tokens = setup.description, outcome.summary.total_tokens_per_second
    cost = None
    if setup.price is not None and tokens:
        cost = setup.price * devices / _HOUR / tokens * 1e6
    return Run(
        label=label,
        server="simulated: " + " ".join(f"--{name} {v}" for name, v in description.items()),
        model=description["model"],
        workload=workload.describe(),
        machine=f"simulated: {devices} x {description['device']}",
        began=began,
        rate=rate,
        seed=load.seed,
        salt="",
        num_shortened=plan.num_shortened,
        records=sorted(outcome.records, key=lambda record: record.arrival),
        summary=outcome.summary,
        lag=_NO_LAG,
        targets=targets,
        simulation=Simulation(
            deployment=description,
            num_devices=devices,
            replicas=outcome.replicas,
            cost_per_million_tokens=cost,
            records_every=outcome.every,
            accuracy=setup.accuracy,
        ),
    )
