"""Candidates of a plan, and how many replicas of each a load takes.

The number is estimated, searched and confirmed. Simulated runs end as soon as they are sure to miss
the targets of the plan.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
from msgspec import structs

from sarathi.bench.capacity.capacity_search import Search
from sarathi.bench.capacity.verdict import CapacityTargets, Verdict, Z, evaluate
from sarathi.bench.results import Run, Simulation
from sarathi.bench.workload.workload import Load
from sarathi.errors import SimulationError
from sarathi.scheduler import Batch
from sarathi.simulator.cost_model import BatchShape, iteration_seconds
from sarathi.simulator.deployment import split_name
from sarathi.simulator.setup import Setup
from sarathi.simulator.simulated_run import simulated_run
from sarathi.units import format_duration

DERIVED = "target"  # instead of a token budget: it follows from the latency target


@dataclass(frozen=True, order=True)
class DeviceLayout:
    """One replica."""

    device: str
    tp: int
    pp: int
    token_budget: int | None  # of an iteration; None: what the latency target leaves

    @property
    def devices(self) -> int:
        return self.tp * self.pp

    @property
    def split(self) -> str:
        return split_name(self.tp, self.pp)

    def __str__(self) -> str:
        budget = "" if self.token_budget is None else f" budget {self.token_budget}"
        return f"{self.device} {self.split}{budget}"


@dataclass(frozen=True)
class Candidate:
    """A replica that fits into its devices."""

    layout: DeviceLayout
    setup: Setup  # of one replica
    price: float  # dollars an hour, of a device; above 0

    @property
    def replica_price(self) -> float:
        return self.price * self.layout.devices


# Why a layout is no choice: it does not fit, it is never fast enough, or it costs too much.
Kind = Literal["does not fit", "misses", "costs more"]


@dataclass(frozen=True)
class Rejected:
    """A layout that is no choice."""

    layout: DeviceLayout
    kind: Kind
    reason: str  # one line
    detail: str = ""  # the arithmetic behind it, perhaps several lines


def layouts(
    devices: Iterable[str],
    tps: Sequence[int],
    pps: Sequence[int],
    budgets: Sequence[int | None],
    max_devices: int,
) -> list[DeviceLayout]:
    """Return all layouts with at most `max_devices` for a replica."""
    found = (DeviceLayout(*each) for each in product(devices, tps, pps, budgets))
    return [layout for layout in found if layout.devices <= max_devices]


def candidates(
    layouts: Iterable[DeviceLayout],
    prices: Mapping[str, float],
    make: Callable[[DeviceLayout], Setup],
) -> tuple[list[Candidate], list[Rejected]]:
    """Return the candidates that fit, and the other layouts with their arithmetic.

    Args:
        prices: by device, in dollars an hour.
        make: returns one replica, or raises SimulationError where the model cannot be laid out so.
    """
    fit: list[Candidate] = []
    others: list[Rejected] = []
    for layout in layouts:
        try:
            fit.append(Candidate(layout, make(layout), prices[layout.device]))
        except SimulationError as error:
            reason, _, detail = str(error).partition("\n")
            others.append(Rejected(layout, "does not fit", reason, detail))
    return fit, others


def plan_targets(tbt: float, ttft: float | None = None, delay: float = 2.0) -> CapacityTargets:
    """Return the targets of a plan, in seconds, with a bound on P90 of the scheduling delay.

    A queue that grows has a median delay of half its longest, if requests start in their order: the
    paper's bound on the median then bounds all. The engine lets short prompts pass long ones,
    however. With the median alone, a plan would let a tenth of the requests wait for minutes, and
    ever longer the longer it runs. So P90 has a bound, too: that which follows from the median's
    where requests start in order.
    """
    return CapacityTargets(tbt, delay, 2 * delay, ttft=ttft)


@dataclass(frozen=True)
class PlanSettings:
    """The load that is to be served, and how finely capacities are searched."""

    rate: float  # requests per second, of all replicas together
    targets: CapacityTargets
    load: Load  # its number of requests is the least of a point
    resolution: float = 0.1  # relative, of capacities
    point_duration: float = 90.0  # least seconds of arrivals of a point


class _StoppedError(Exception):
    """The run is sure to miss; the message is the reason."""


def run_with_early_stopping(
    setup: Setup, options: PlanSettings, rate: float, number: int, label: str, most_records: int
) -> tuple[Run | None, Verdict]:
    """Simulate a rate, until too many requests have certainly waited too long.

    Of those that have arrived, all but as many as have started are waiting. A request that starts
    again after a preemption counts as one more, so that the number is a lower bound.

    Args:
        rate: requests per second, of all replicas of the setup.

    Returns:
        No run where it was stopped; the verdict is a certain miss then.
    """
    load, targets = replace(options.load, num_requests=number), options.targets
    plan = load.plan(rate, setup.max_model_len)
    # Without its first slice a request has no token either.
    limit = min(targets.tail_delay or math.inf, targets.ttft or math.inf)
    measured = len(plan) - plan.num_warm_up
    allowed = 0.1 * measured  # may wait longer than the bounds on P90
    most = plan.num_warm_up + allowed + Z * math.sqrt(allowed)
    started = 0

    def on_batch(replica: int, batch: Batch, began: float, ended: float) -> None:
        nonlocal started
        started += sum(part.start == 0 for part in batch.slices[batch.num_decodes :])
        arrived = int(np.searchsorted(plan.times, began - limit, side="right"))
        if arrived - started > most:
            raise _StoppedError(
                f"more than a tenth of {measured} requests waited longer than "
                f"{format_duration(limit)} at one time"
            )

    try:
        run = simulated_run(setup, load, rate, label, most_records=most_records, on_batch=on_batch)
    except _StoppedError as error:
        return None, Verdict(False, True, str(error))
    return run, evaluate(run.summary, targets)


_TOKENS = 512  # of a typical iteration
_HEADROOM = 0.5  # of the throughput of such iterations is a replica's capacity, roughly
_HALVINGS = 6  # of the estimated capacity, before a replica is rejected
_RUNS = 2  # at a rate whose verdict is uncertain
_SPARE = 2  # replicas more than the capacity asks for, where the planned rate misses after all
_CONFIRM_SPARE = 3  # likewise, where all replicas are simulated
_CONFIRM_REQUESTS = 4096  # at most, unless the least duration of a run asks for more


class MeanRequest(NamedTuple):
    """Mean lengths in tokens."""

    prompt: float
    output: float

    @property
    def total(self) -> float:
        return self.prompt + self.output


def mean_request(options: PlanSettings, setup: Setup) -> MeanRequest:
    """Return the mean lengths of a load."""
    load = replace(options.load, num_requests=1000, warm_up=0)
    plan = load.plan(options.rate, setup.max_model_len)
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

    @property
    def tbt(self) -> float:
        """P99 in seconds; answers of one token each have none."""
        return self.run.summary.tbt.p99 or 0.0

    @property
    def ttft(self) -> float:
        """P90 in seconds."""
        return self.run.summary.ttft.p90 or 0.0

    @property
    def simulation(self) -> Simulation:
        assert self.run.simulation is not None
        return self.run.simulation


def evaluate_candidate(
    candidate: Candidate, settings: PlanSettings, most_replicas: int | None
) -> PlanChoice | Rejected:
    """Search the capacity of one replica, then simulate it at its share of the load.

    Args:
        most_replicas: with more, it costs too much; None: it never does.
    """
    layout, setup, rate, target = candidate.layout, candidate.setup, settings.rate, settings.targets
    fastest = iteration_seconds(setup.cost, BatchShape.make(1, 1))
    if fastest > target.tbt and setup.noise is None:
        reason = f"a token takes {format_duration(fastest)} even of a request alone, above "
        return Rejected(layout, "misses", reason + format_duration(target.tbt))
    mean = mean_request(settings, setup)
    runs = _ReplicaRuns(candidate, settings, min(estimated_capacity(setup, mean), rate))

    if most_replicas is not None:  # one run may show that they are too few
        share = rate / most_replicas
        verdict = runs.run(share)
        while not runs.settled(share):
            verdict = runs.run(share)
        if verdict.certain and not verdict.met:
            replicas = "one replica" if most_replicas == 1 else f"{most_replicas} replicas"
            reason = f"needs more than {replicas}: at {share:.3g}/s each, {verdict.reason}"
            return Rejected(layout, "costs more", reason)

    capacity = runs.find_capacity()
    if capacity is None:
        lowest = min(runs.latest)
        reason = f"even {lowest:.3g} requests a second miss: {runs.latest[lowest][1].reason}"
        return Rejected(layout, "misses", reason)

    # The search ends with two rates that are some way apart; shares between them are tried.
    missed = [r for r, (_, v) in runs.latest.items() if not v.met and r > capacity]
    least = max(1, math.floor(rate / min(missed)) + 1) if missed else 1
    enough = max(1, math.ceil(rate / capacity))
    for number in range(min(least, enough), enough + _SPARE + 1):
        share = rate / number
        if share not in runs.latest:
            runs.run(share)
        run, verdict = runs.latest[share]
        if run is not None and verdict.met:
            return PlanChoice(
                layout=layout,
                replicas=number,
                rate=rate,
                price=candidate.price,
                capacity=capacity if number == enough else share,
                open_ended=capacity >= rate,
                run=run,
                reason=verdict.reason,
                tokens_per_second=rate * mean.total,
            )
    reason = f"no number of replicas was sure to do: {verdict.reason} at {share:.3g}/s each"
    return Rejected(layout, "misses", reason)


class _ReplicaRuns:
    """Runs of one replica, from which its capacity follows."""

    def __init__(self, candidate: Candidate, settings: PlanSettings, start: float) -> None:
        self._candidate, self._settings = candidate, settings
        self._start = float(f"{max(1e-5, start):.3g}")
        self._search = Search(self._start, settings.resolution, max_halvings=_HALVINGS)
        self._times: Counter[float] = Counter()  # that a rate was run
        self.latest: dict[float, tuple[Run | None, Verdict]] = {}  # by rate

    def run(self, rate: float) -> Verdict:
        """Run a rate, each time with twice as many requests, the first half being the same."""
        settings, candidate = self._settings, self._candidate
        number = max(settings.load.num_requests, math.ceil(rate * settings.point_duration))
        number *= 2 ** self._times[rate]
        run, verdict = run_with_early_stopping(
            candidate.setup, settings, rate, number, str(candidate.layout), most_records=256
        )
        self._search.record(rate, verdict.met, verdict.certain)
        self.latest[rate] = (run, verdict)
        self._times[rate] += 1
        return verdict

    def settled(self, rate: float) -> bool:
        """Return whether the verdict on a rate is as certain as possible."""
        return self.latest[rate][1].certain or self._times[rate] >= _RUNS

    def find_capacity(self) -> float | None:
        """Return the highest rate believed to meet the targets, or None."""
        rate = self._settings.rate
        if all(verdict.met and r < self._start for r, (_, verdict) in self.latest.items()):
            self.run(self._start)  # which saves doublings from a low rate
        while (attempt := self._search.next()) is not None:
            # One replica that serves all is enough: how much more it could take costs long runs.
            verdict = self.run(min(attempt.rate, rate))
            if attempt.rate >= rate and verdict.met and self.settled(rate):
                break
        return self._search.capacity


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
            most_records=1024,
        )
        if run is not None and verdict.met:
            found = replace(
                choice, replicas=replicas, run=run, reason=verdict.reason, confirmed=True
            )
            # The cost of a steady load: at its end, a run keeps devices for ever fewer requests.
            cost = found.cost_per_million_tokens
            simulation = structs.replace(found.simulation, cost_per_million_tokens=cost)
            return replace(found, run=structs.replace(run, simulation=simulation))
    reason = f"{replicas} replicas together miss: {verdict.reason}"
    return Rejected(choice.layout, "misses", reason)
