"""Simulated runs and capacity searches, with the results of a benchmark."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

from sarathi.bench.capacity.capacity_search import Search, judge_rate, search_result
from sarathi.bench.capacity.verdict import CapacityTargets
from sarathi.bench.report import CapacityWithRuns
from sarathi.bench.results import Lag, Point, Run, Simulation
from sarathi.bench.workload.workload import Load
from sarathi.simulator.setup import Setup
from sarathi.simulator.simulation import OnBatch, OnIteration, OnProgress, simulate
from sarathi.telemetry import Targets

_HALVINGS = 12  # of the first rate: big models serve a request a minute, and time costs little here


def simulated_run(
    setup: Setup,
    load: Load,
    rate: float | None,
    label: str,
    *,
    targets: Targets | None = None,
    most_records: int = 4096,
    on_progress: OnProgress | None = None,
    on_batch: OnBatch | None = None,
    on_iteration: OnIteration | None = None,
) -> Run:
    """Simulate a load, and return the result as a benchmark would; options are those of `simulate`.

    Args:
        rate: requests per second, of all replicas together; None for a trace's own times.

    Raises:
        BenchmarkError: the workload cannot be made at this rate or from this file.
    """
    plan = load.plan(rate, setup.max_model_len)
    began = time.time()
    outcome = simulate(
        setup, plan, load.seed, targets, most_records, on_progress, on_batch, on_iteration
    )
    devices = setup.num_replicas * setup.devices_per_replica
    description, tokens = setup.description, outcome.summary.total_tokens_per_second
    cost = None
    if setup.price is not None and tokens:
        cost = setup.price * devices / 3600 / tokens * 1e6
    return Run(
        label=label,
        server="simulated: " + " ".join(f"--{name} {v}" for name, v in description.items()),
        model=description["model"],
        workload=load.workload.describe(),
        machine=f"simulated: {devices} x {description['device']}",
        began=began,
        rate=rate,
        seed=load.seed,
        salt=load.salt,
        num_shortened=plan.num_shortened,
        records=sorted(outcome.records, key=lambda record: record.arrival),
        summary=outcome.summary,
        lag=Lag(p50=0.0, p99=0.0, max=0.0, cpu=0.0),  # the client is on the virtual clock, too
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


def find_capacity(
    setup: Setup,
    load: Load,
    targets: CapacityTargets,
    label: str,
    *,
    resolution: float,
    start_rate: float,
    point_duration: float,
    on_point: Callable[[Run, Point], None] = lambda run, point: None,
    on_requests: Callable[[float, int, int], None] = lambda rate, ended, total: None,
) -> CapacityWithRuns:
    """Search the capacity of a setup.

    Args:
        load: its number of requests is the least of a point.
        resolution: relative distance of the two rates that the search ends with.
        start_rate: requests per second, tried first.
        point_duration: least seconds of arrivals of a point.
        on_point: called with each run and the verdict on it.
        on_requests: called every few hundred requests within a run, with its rate, how many have
            ended, and how many there are.

    Returns:
        The capacity, and the latest run of each rate, in the order of rates.

    Raises:
        BenchmarkError: the workload cannot be made.
    """
    search = Search(start_rate, resolution, max_halvings=_HALVINGS)
    points: dict[float, Point] = {}
    runs: dict[float, Run] = {}

    def measure(rate: float, number: int) -> Run:
        own, total = replace(load, num_requests=number), number + load.warm_up
        return simulated_run(
            setup,
            own,
            rate,
            label,
            most_records=512,  # for figures
            on_progress=lambda ended, now: on_requests(rate, ended, total),
        )

    while (attempt := search.next()) is not None:
        rate = attempt.rate
        number = max(load.num_requests, math.ceil(rate * point_duration))
        # An uncertain rate is repeated with twice as many requests, the first half being the same.
        run = runs[rate] = measure(rate, number * 2**attempt.repeat)
        points[rate] = judge_rate(search, rate, [run], targets)
        on_point(run, points[rate])
    capacity = search_result(search, targets, points, run, load.num_requests)
    return CapacityWithRuns(capacity, [runs[rate] for rate in sorted(runs)])
