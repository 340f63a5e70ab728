"""The highest rate within a latency target, found on a virtual clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from sarathi.bench.capacity.rate_search import Search, Try
from sarathi.bench.capacity.verdict import CapacityTargets, Verdict, evaluate
from sarathi.bench.results import Capacity, Point, Run
from sarathi.simulator.setup import Setup
from sarathi.simulator.simulated_run import SimulatedLoad, simulated_run

_HALVINGS = 12  # of the first rate: big models serve a request a minute, and time costs little here
_RECORDS = 512  # of a run, for figures

TellPoint = Callable[[Run, Verdict], None]
TellProgress = Callable[[float, int, int], None]  # rate, requests that have ended, all requests


@dataclass(frozen=True)
class SearchTerms:
    """How a search goes. Rates are requests per second."""

    targets: CapacityTargets
    resolution: float  # relative
    start_rate: float
    point_duration: float  # seconds of arrivals that a point has at least


@dataclass(frozen=True)
class Found:
    capacity: Capacity
    runs: list[Run]  # the latest of each rate, in their order


def find_capacity(
    setup: Setup,
    load: SimulatedLoad,
    terms: SearchTerms,
    label: str,
    *,
    tell: TellPoint = lambda run, verdict: None,
    progress: TellProgress | None = None,
) -> Found:
    """
    Args:
        load: its requests are those of a point at least.
        tell: is called with each run and its verdict.
        progress: is called now and then within a run.

    Raises:
        BenchmarkError: the workload cannot be had.
    """
    search = Search(terms.start_rate, terms.resolution, max_halvings=_HALVINGS)
    points: dict[float, Point] = {}
    runs: dict[float, Run] = {}
    while (attempt := search.next()) is not None:
        run = _run(setup, load, terms, attempt, label, progress)
        verdict = evaluate(run.summary, terms.targets)
        search.record(attempt.rate, verdict.met, verdict.certain)
        runs[attempt.rate] = run
        points[attempt.rate] = Point(
            rate=attempt.rate,
            met=verdict.met,
            reason=verdict.reason,
            certain=verdict.certain,
            summary=run.summary,
            run="",
        )
        tell(run, verdict)
    return Found(
        Capacity(
            label=label,
            server=run.server,
            model=run.model,
            workload=run.workload,
            machine=run.machine,
            tbt_target=terms.targets.tbt,
            delay_target=terms.targets.delay,
            tail_delay_target=terms.targets.tail_delay,
            requests_per_point=load.num_requests,
            resolution=terms.resolution,
            capacity=search.capacity,
            low=search.low,
            high=search.high,
            points=[points[rate] for rate in sorted(points)],
            accuracy=setup.accuracy,
        ),
        [runs[rate] for rate in sorted(runs)],
    )


def _run(
    setup: Setup,
    load: SimulatedLoad,
    terms: SearchTerms,
    attempt: Try,
    label: str,
    progress: TellProgress | None,
) -> Run:
    number = max(load.num_requests, math.ceil(attempt.rate * terms.point_duration))
    # A rate that is doubtful is tried with twice as many requests, the first half being the same.
    number *= 2**attempt.repeat
    own = replace(load, num_requests=number)
    total = number + load.warm_up

    def tell(ended: int, now: float) -> None:
        if progress is not None:
            progress(attempt.rate, ended, total)

    return simulated_run(setup, own, attempt.rate, label, most_records=_RECORDS, tell=tell)
