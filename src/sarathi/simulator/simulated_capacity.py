"""The highest rate within latency targets, searched on a virtual clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from sarathi.bench.capacity.rate_search import Search
from sarathi.bench.capacity.verdict import CapacityTargets, Verdict, evaluate
from sarathi.bench.report import CapacityWithRuns
from sarathi.bench.results import Capacity, Point, Run
from sarathi.simulator.setup import Setup
from sarathi.simulator.simulated_run import SimulatedLoad, simulated_run

_HALVINGS = 12  # of the first rate: big models serve a request a minute, and time costs little here
_RECORDS = 512  # of a run, for figures


@dataclass(frozen=True)
class SimulatedSearch:
    """What is searched for, and how. Rates are requests per second."""

    targets: CapacityTargets
    resolution: float  # relative
    start_rate: float
    point_duration: float  # least seconds of arrivals of a point


def find_capacity(
    setup: Setup,
    load: SimulatedLoad,
    options: SimulatedSearch,
    label: str,
    *,
    on_point: Callable[[Run, Verdict], None] = lambda run, verdict: None,
    on_requests: Callable[[float, int, int], None] = lambda rate, ended, total: None,
) -> CapacityWithRuns:
    """Search the capacity of a setup.

    Args:
        load: its number of requests is the least of a point.
        on_point: called with each run and its verdict.
        on_requests: called every few hundred requests within a run, with its rate, how many have
            ended, and how many there are.

    Returns:
        The capacity, and the latest run of each rate, in the order of rates.

    Raises:
        BenchmarkError: the workload cannot be made.
    """
    search, targets = (
        Search(options.start_rate, options.resolution, max_halvings=_HALVINGS),
        options.targets,
    )
    points: dict[float, tuple[Point, Run]] = {}

    def measure(rate: float, number: int) -> Run:
        total = number + load.warm_up
        return simulated_run(
            setup,
            replace(load, num_requests=number),
            rate,
            label,
            most_records=_RECORDS,
            on_progress=lambda ended, now: on_requests(rate, ended, total),
        )

    while (attempt := search.next()) is not None:
        rate = attempt.rate
        number = max(load.num_requests, math.ceil(rate * options.point_duration))
        # An uncertain rate is repeated with twice as many requests, the first half being the same.
        run = measure(rate, number * 2**attempt.repeat)
        verdict = evaluate(run.summary, targets)
        search.record(rate, verdict.met, verdict.certain)
        met, certain, reason = verdict.met, verdict.certain, verdict.reason
        points[rate] = (
            Point(rate=rate, met=met, reason=reason, certain=certain, summary=run.summary, run=""),
            run,
        )
        on_point(run, verdict)
    in_order = [points[rate] for rate in sorted(points)]
    about = {
        name: getattr(run, name) for name in ("label", "server", "model", "workload", "machine")
    }
    capacity = Capacity(
        **about,
        tbt_target=targets.tbt,
        delay_target=targets.delay,
        tail_delay_target=targets.tail_delay,
        requests_per_point=load.num_requests,
        resolution=options.resolution,
        capacity=search.capacity,
        low=search.low,
        high=search.high,
        points=[point for point, _ in in_order],
        accuracy=setup.accuracy,
    )
    return CapacityWithRuns(capacity, [run for _, run in in_order])
