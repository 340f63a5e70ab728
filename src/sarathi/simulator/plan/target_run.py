"""The targets of a plan, and simulated runs that end as soon as they are sure to miss them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from sarathi.bench.capacity.verdict import (
    CapacityTargets,
    Verdict,
    combine,
    evaluate,
    evaluate_latency,
)
from sarathi.bench.results import Run
from sarathi.bench.workload.arrivals import Times
from sarathi.scheduler import Batch
from sarathi.simulator.setup import Setup
from sarathi.simulator.simulated_run import SimulatedLoad, simulated_run
from sarathi.telemetry import Summary
from sarathi.units import format_duration

_TAIL = 0.1  # of the requests may wait longer than the bounds on P90
_Z = 1.96  # standard errors that hold 95 %


@dataclass(frozen=True)
class PlanTargets:
    """Seconds.

    A queue that grows has a median delay of half its longest, if requests start in their order: the
    paper's bound on the median then bounds all. The engine lets short prompts pass long ones,
    however. With the median alone, a plan would let a tenth of the requests wait for minutes, and
    ever longer the longer it runs. So P90 has a bound, too: that which follows from the median's
    where requests start in order.
    """

    tbt: float  # for P99
    ttft: float | None = None  # for P90; None: any
    delay: float = 2.0  # for the median scheduling delay

    @property
    def tail_delay(self) -> float:
        """For P90 of the scheduling delay."""
        return 2 * self.delay

    def evaluate(self, summary: Summary) -> Verdict:
        """Return whether a run met the targets, those of a capacity search and that of TTFT.

        A miss is certain if it is for any target; targets are met for certain if all are.
        """
        load = evaluate(summary, CapacityTargets(self.tbt, self.delay, self.tail_delay))
        if self.ttft is None:
            return load
        ttft = summary.ttft
        if ttft.p90 is None:
            return combine(load, Verdict(False, True, "no complete answer has a token"))
        return combine(load, evaluate_latency("P90 TTFT", ttft.p90, ttft.p90_interval, self.ttft))


@dataclass(frozen=True)
class PlanSettings:
    """The load that is to be served, and how finely capacities are searched."""

    rate: float  # requests per second, of all replicas together
    targets: PlanTargets
    load: SimulatedLoad  # its number of requests is the least of a point
    resolution: float = 0.1  # relative, of capacities
    point_duration: float = 90.0  # least seconds of arrivals of a point


def run_with_early_stopping(
    setup: Setup, options: PlanSettings, rate: float, number: int, label: str, most_records: int
) -> tuple[Run | None, Verdict]:
    """Simulate a rate, as long as the targets can be met.

    Args:
        rate: requests per second, of all replicas of the setup.
        number: requests to be measured.

    Returns:
        No run where it was stopped; the verdict is a certain miss then.
    """
    load = replace(options.load, num_requests=number)
    plan = load.workload.plan(rate, number, load.warm_up, load.seed, setup.max_model_len)
    stopping = _EarlyStopping(plan.times, plan.num_warm_up, options.targets)
    try:
        run = simulated_run(
            setup, load, rate, label, most_records=most_records, on_batch=stopping.on_batch
        )
    except _StoppedError as error:
        return None, Verdict(False, True, str(error))
    return run, options.targets.evaluate(run.summary)


class _StoppedError(Exception):
    """The run is sure to miss; the message is the reason."""


class _EarlyStopping:
    """Counts the requests that have waited too long already, at least.

    Of those that have arrived, all but as many as have started are waiting. A request that starts
    again after a preemption counts as one more, so that the number is a lower bound.
    """

    def __init__(self, times: Times, num_warm_up: int, targets: PlanTargets) -> None:
        # Without its first slice a request has no token either.
        self._limit = min(targets.tail_delay, targets.ttft or math.inf)
        self._times = times
        self._number = len(times) - num_warm_up
        allowed = _TAIL * self._number
        self._most = num_warm_up + allowed + _Z * math.sqrt(allowed)
        self._started = 0

    def on_batch(self, replica: int, batch: Batch, began: float, ended: float) -> None:
        """Raise `_StoppedError` if too many requests are waiting."""
        prompts = batch.slices[batch.num_decodes :]
        self._started += sum(part.start == 0 for part in prompts)
        arrived = int(np.searchsorted(self._times, began - self._limit, side="right"))
        if arrived - self._started > self._most:
            raise _StoppedError(
                f"more than a tenth of {self._number} requests waited longer than "
                f"{format_duration(self._limit)} at one time"
            )
