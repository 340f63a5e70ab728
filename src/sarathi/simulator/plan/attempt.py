"""One simulated run of a plan, that ends as soon as it is sure to miss."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from sarathi.bench.capacity.verdict import Verdict
from sarathi.bench.results import Run
from sarathi.bench.workload.arrivals import Times
from sarathi.scheduler import Batch
from sarathi.simulator.plan.plan_targets import PlanTargets, PlanTerms
from sarathi.simulator.setup import Setup
from sarathi.simulator.simulated_run import simulated_run
from sarathi.units import format_duration

_TAIL = 0.1  # of the requests may wait longer than the bounds on P90
_Z = 1.96  # standard errors that hold 95 %


def attempt(
    setup: Setup, terms: PlanTerms, rate: float, number: int, label: str, most_records: int
) -> tuple[Run | None, Verdict]:
    """
    Args:
        rate: requests per second, of all replicas of the setup.
        number: requests to be measured.

    Returns:
        No run where it was stopped; the verdict is a miss for certain then.
    """
    load = replace(terms.load, num_requests=number)
    plan = load.workload.plan(rate, number, load.warm_up, load.seed, setup.max_model_len)
    watch = _Watch(plan.times, plan.num_warm_up, terms.targets)
    try:
        run = simulated_run(
            setup, load, rate, label, most_records=most_records, watcher=watch.computed
        )
    except _HopelessError as error:
        return None, Verdict(False, True, str(error))
    return run, terms.targets.evaluate(run.summary)


class _HopelessError(Exception):
    """The run is sure to miss; the message says why."""


class _Watch:
    """Counts the requests that have waited too long already, at least.

    Of those that have come, all but as many as have started are waiting. Who starts anew after a
    preemption counts as one more, so that the number is a lower bound.
    """

    def __init__(self, times: Times, num_warm_up: int, targets: PlanTargets) -> None:
        # Without its first slice a request has no token either.
        self._limit = min(targets.tail_delay, targets.ttft or math.inf)
        self._times = times
        self._number = len(times) - num_warm_up
        allowed = _TAIL * self._number
        self._most = num_warm_up + allowed + _Z * math.sqrt(allowed)
        self._started = 0

    def computed(self, replica: int, batch: Batch, began: float, ended: float) -> None:
        prompts = batch.slices[batch.num_decodes :]
        self._started += sum(part.start == 0 for part in prompts)
        came = int(np.searchsorted(self._times, began - self._limit, side="right"))
        if came - self._started > self._most:
            raise _HopelessError(
                f"more than a tenth of {self._number} requests waited longer than "
                f"{format_duration(self._limit)} at one time"
            )
