"""The number of replicas of one candidate that a load takes: estimated, searched and confirmed.

Simulated runs end as soon as they are sure to miss the targets of the plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from msgspec import structs

from sarathi.bench.capacity.capacity_search import Search
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
from sarathi.simulator.cost_model import BatchShape, iteration_seconds
from sarathi.simulator.plan.candidates import Candidate, DeviceLayout, Rejected
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


_SAMPLE = 1000  # requests, of which mean lengths are computed
_TOKENS = 512  # of a typical iteration
_HEADROOM = 0.5  # of the throughput of such iterations is a replica's capacity, roughly
_HALVINGS = 6  # of the estimated capacity, before a replica is rejected
_RUNS = 2  # at a rate whose verdict is uncertain
_SPARE = 2  # replicas more than the capacity asks for, where the planned rate misses after all
_RECORDS = 256  # of a run, for figures
_CONFIRM_SPARE = 3  # likewise, where all replicas are simulated
_CONFIRM_REQUESTS = 4096  # at most, unless the least duration of a run asks for more
_CONFIRM_RECORDS = 1024


@dataclass(frozen=True)
class MeanRequest:
    """Mean lengths in tokens."""

    prompt: float
    output: float

    @property
    def total(self) -> float:
        return self.prompt + self.output


def mean_request(options: PlanSettings, setup: Setup) -> MeanRequest:
    """Return the mean lengths of a load.

    Raises:
        BenchmarkError: the workload cannot be made.
    """
    load = options.load
    plan = load.workload.plan(options.rate, _SAMPLE, 0, load.seed, setup.max_model_len)
    return MeanRequest(float(plan.prompts.mean()), float(plan.outputs.mean()))


def estimated_capacity(setup: Setup, mean: MeanRequest) -> float:
    """Return requests per second, within a factor of two or so: where a search begins."""
    decodes = min(setup.config.max_batch_size, 64, round(_TOKENS * mean.output / mean.total) + 1)
    chunk = _TOKENS - decodes
    context = int(decodes * (mean.prompt + mean.output / 2))
    shape = BatchShape(decodes, context, ((int(mean.prompt / 2), chunk),), decodes, _TOKENS)
    seconds = max(setup.cost.stages(shape)) + setup.cost.overhead(shape)
    return _HEADROOM * _TOKENS / (seconds * mean.total)


def estimated_cost(candidate: Candidate, options: PlanSettings, mean: MeanRequest) -> float:
    """Return dollars an hour. Parts of a replica count, so that there are no ties."""
    replicas = options.rate / estimated_capacity(candidate.setup, mean)
    return max(1.0, replicas) * candidate.replica_price


@dataclass(frozen=True)
class PlanChoice:
    """A deployment that serves the load within the targets."""

    layout: DeviceLayout
    replicas: int
    rate: float  # requests per second, of all replicas together
    price: float  # dollars an hour, of a device
    capacity: float  # requests per second, of a replica
    open_ended: bool  # the capacity is at least that
    run: Run  # at the planned rate: of one replica with its share, or of all once confirmed
    reason: str  # why it meets the targets
    tokens_per_second: float  # of the whole load, prompts included
    confirmed: bool = False  # simulated with all its replicas and their router

    @property
    def devices(self) -> int:
        return self.replicas * self.layout.devices

    @property
    def rate_per_replica(self) -> float:
        return self.rate / self.replicas

    @property
    def cost(self) -> float:
        """Dollars an hour."""
        return self.devices * self.price

    @property
    def cost_per_million_tokens(self) -> float:
        return self.cost / 3600 / self.tokens_per_second * 1e6


def evaluate_candidate(
    candidate: Candidate, settings: PlanSettings, most_replicas: int | None
) -> PlanChoice | Rejected:
    """Search the capacity of one replica, then simulate it at its share of the load.

    Args:
        most_replicas: with more, it costs too much; None: it never does.
    """
    target = settings.targets.tbt
    fastest = iteration_seconds(candidate.setup.cost, BatchShape.make(1, 1))
    if fastest > target and candidate.setup.noise is None:
        reason = f"a token takes {format_duration(fastest)} even of a request alone, above "
        return Rejected(candidate.layout, "misses", reason + format_duration(target))
    return _Evaluation(candidate, settings, most_replicas).result()


class _Evaluation:
    def __init__(
        self, candidate: Candidate, settings: PlanSettings, most_replicas: int | None
    ) -> None:
        self._candidate, self._options, self._most = candidate, settings, most_replicas
        self._mean = mean_request(settings, candidate.setup)
        estimate = estimated_capacity(candidate.setup, self._mean)
        self._start = float(f"{max(1e-5, min(estimate, settings.rate)):.3g}")
        self._search = Search(self._start, settings.resolution, max_halvings=_HALVINGS)
        self._latest: dict[float, tuple[Run | None, Verdict]] = {}  # by rate
        self._times: dict[float, int] = {}  # that a rate was run

    def result(self) -> PlanChoice | Rejected:
        rejected = self._too_expensive()
        if rejected is not None:
            return rejected
        self._find_capacity()
        capacity = self._search.capacity
        if capacity is None:
            lowest = min(self._latest)
            reason = f"even {lowest:.3g} requests a second miss: {self._latest[lowest][1].reason}"
            return Rejected(self._candidate.layout, "misses", reason)
        return self._choice(capacity)

    def _too_expensive(self) -> Rejected | None:
        """Reject the candidate if one run shows that the affordable replicas are too few."""
        if self._most is None:
            return None
        rate = self._options.rate / self._most
        verdict = self._settle(rate)
        if verdict.met or not verdict.certain:
            return None
        replicas = "one replica" if self._most == 1 else f"{self._most} replicas"
        reason = f"needs more than {replicas}: at {rate:.3g}/s each, {verdict.reason}"
        return Rejected(self._candidate.layout, "costs more", reason)

    def _find_capacity(self) -> None:
        rate = self._options.rate
        if all(verdict.met and r < self._start for r, (_, verdict) in self._latest.items()):
            self._run(self._start)  # which saves doublings from a low rate
        while (attempt := self._search.next()) is not None:
            # One replica that serves all is enough: how much more it could take costs long runs.
            verdict = self._run(min(attempt.rate, rate))
            if attempt.rate >= rate and verdict.met and self._settled(rate):
                return

    def _choice(self, capacity: float) -> PlanChoice | Rejected:
        """Return the fewest replicas that meet the targets at their share of the load.

        The search ends with two rates that are some way apart; shares between them are tried.
        """
        rate = self._options.rate
        missed = [r for r, (_, v) in self._latest.items() if not v.met and r > capacity]
        least = max(1, math.floor(rate / min(missed)) + 1) if missed else 1
        enough = max(1, math.ceil(rate / capacity))
        for replicas in range(min(least, enough), enough + _SPARE + 1):
            share = rate / replicas
            if share not in self._latest:
                self._run(share)
            run, verdict = self._latest[share]
            if run is not None and verdict.met:
                return PlanChoice(
                    layout=self._candidate.layout,
                    replicas=replicas,
                    rate=rate,
                    price=self._candidate.price,
                    capacity=capacity if replicas == enough else share,
                    open_ended=capacity >= rate,
                    run=run,
                    reason=verdict.reason,
                    tokens_per_second=rate * self._mean.total,
                )
        reason = f"no number of replicas was sure to do: {verdict.reason} at {share:.3g}/s each"
        return Rejected(self._candidate.layout, "misses", reason)

    def _settle(self, rate: float) -> Verdict:
        """Run a rate until its verdict is as certain as possible."""
        verdict = self._run(rate)
        while not self._settled(rate):
            verdict = self._run(rate)
        return verdict

    def _settled(self, rate: float) -> bool:
        return self._latest[rate][1].certain or self._times[rate] >= _RUNS

    def _run(self, rate: float) -> Verdict:
        """Run a rate, each time with twice as many requests, the first half being the same."""
        options, times = self._options, self._times.get(rate, 0)
        number = max(options.load.num_requests, math.ceil(rate * options.point_duration))
        run, verdict = run_with_early_stopping(
            self._candidate.setup,
            options,
            rate,
            number * 2**times,
            str(self._candidate.layout),
            _RECORDS,
        )
        self._search.record(rate, verdict.met, verdict.certain)
        self._latest[rate] = (run, verdict)
        self._times[rate] = times + 1
        return verdict


def confirm(
    choice: PlanChoice, candidate: Candidate, options: PlanSettings, router: str
) -> PlanChoice | Rejected:
    """Simulate a choice as it would run, with more replicas where the estimated number misses."""
    setup = candidate.setup
    for replicas in range(choice.replicas, choice.replicas + _CONFIRM_SPARE + 1):
        number = max(
            min(_CONFIRM_REQUESTS, replicas * options.load.num_requests),
            math.ceil(options.rate * options.point_duration),
        )
        described = {**setup.description, "replicas": str(replicas), "router": router}
        run, verdict = run_with_early_stopping(
            replace(setup, num_replicas=replicas, router=router, description=described),
            options,
            options.rate,
            number,
            f"{replicas} x {choice.layout}",
            _CONFIRM_RECORDS,
        )
        if run is not None and verdict.met:
            found = replace(choice, replicas=replicas, reason=verdict.reason, confirmed=True)
            # The cost of a steady load: at its end, a run keeps devices for ever fewer requests.
            assert run.simulation is not None
            cost = found.cost_per_million_tokens
            simulation = structs.replace(run.simulation, cost_per_million_tokens=cost)
            return replace(found, run=structs.replace(run, simulation=simulation))
    reason = f"{replicas} replicas together miss: {verdict.reason}"
    return Rejected(choice.layout, "misses", reason)
