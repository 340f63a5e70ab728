"""How many replicas of one kind a load takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sarathi.bench.capacity.rate_search import Search
from sarathi.bench.capacity.verdict import Verdict
from sarathi.bench.results import Run
from sarathi.simulator.plan.attempt import attempt
from sarathi.simulator.plan.candidates import Candidate, DeviceLayout, Rejected
from sarathi.simulator.plan.estimate import guessed_capacity, lone_decode, mean_request
from sarathi.simulator.plan.plan_targets import PlanTerms
from sarathi.units import format_duration

_HALVINGS = 6  # of the guessed capacity, before a replica is given up
_RUNS = 2  # at a rate whose verdict is uncertain
_SPARE = 2  # replicas more than the capacity asks for, where the planned rate misses after all
_RECORDS = 256  # of a run, for figures


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


@dataclass(frozen=True)
class EvaluationJob:
    """
    Args:
        most_replicas: with more, the candidate costs too much; None: it never does.
    """

    candidate: Candidate
    terms: PlanTerms
    most_replicas: int | None


def evaluate(job: EvaluationJob) -> PlanChoice | Rejected:
    """Search the capacity of one replica, then simulate it at its share of the load."""
    candidate, terms = job.candidate, job.terms
    alone = lone_decode(candidate.setup)
    if alone > terms.targets.tbt and candidate.setup.noise is None:
        limit = format_duration(terms.targets.tbt)
        reason = f"a token takes {format_duration(alone)} even of a request alone, above {limit}"
        return Rejected(candidate.layout, "misses", reason)
    return _Evaluation(job).result()


class _Evaluation:
    def __init__(self, job: EvaluationJob) -> None:
        self._candidate = job.candidate
        self._terms = job.terms
        self._most = job.most_replicas
        self._mean = mean_request(job.terms, job.candidate.setup.max_model_len)
        guess = guessed_capacity(job.candidate.setup, self._mean)
        self._start = float(f"{max(1e-5, min(guess, job.terms.rate)):.3g}")
        self._search = Search(self._start, job.terms.resolution, max_halvings=_HALVINGS)
        self._latest: dict[float, tuple[Run | None, Verdict]] = {}  # by rate
        self._times: dict[float, int] = {}  # that a rate was run

    def result(self) -> PlanChoice | Rejected:
        rejected = self._too_dear()
        if rejected is not None:
            return rejected
        self._find_capacity()
        capacity = self._search.capacity
        if capacity is None:
            lowest = min(self._latest)
            reason = f"even {lowest:.3g} requests a second miss: {self._latest[lowest][1].reason}"
            return Rejected(self._candidate.layout, "misses", reason)
        return self._choice(capacity)

    def _too_dear(self) -> Rejected | None:
        """One run tells whether so many replicas as may be paid for are enough."""
        if self._most is None:
            return None
        rate = self._terms.rate / self._most
        verdict = self._settle(rate)
        if verdict.met or not verdict.certain:
            return None
        replicas = "one replica" if self._most == 1 else f"{self._most} replicas"
        reason = f"needs more than {replicas}: at {rate:.3g}/s each, {verdict.reason}"
        return Rejected(self._candidate.layout, "costs more", reason)

    def _find_capacity(self) -> None:
        rate = self._terms.rate
        if all(verdict.met and r < self._start for r, (_, verdict) in self._latest.items()):
            self._run(self._start)  # which saves doublings from a low rate
        while (asked := self._search.next()) is not None:
            # One replica that serves all is enough: how much more it could take costs long runs.
            verdict = self._run(min(asked.rate, rate))
            if asked.rate >= rate and verdict.met and self._settled(rate):
                return

    def _choice(self, capacity: float) -> PlanChoice | Rejected:
        """The fewest replicas that meet the targets at their share of the load.

        The search ends with two rates that are some way apart; shares between them are tried.
        """
        rate = self._terms.rate
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
        """Run a rate until its verdict is as certain as it gets."""
        verdict = self._run(rate)
        while not self._settled(rate):
            verdict = self._run(rate)
        return verdict

    def _settled(self, rate: float) -> bool:
        return self._latest[rate][1].certain or self._times[rate] >= _RUNS

    def _run(self, rate: float) -> Verdict:
        """Once more with twice as many requests, the first half being the same."""
        terms, times = self._terms, self._times.get(rate, 0)
        number = max(terms.load.num_requests, math.ceil(rate * terms.point_duration)) * 2**times
        name = str(self._candidate.layout)
        run, verdict = attempt(self._candidate.setup, terms, rate, number, name, _RECORDS)
        self._search.record(rate, verdict.met, verdict.certain)
        self._latest[rate] = (run, verdict)
        self._times[rate] = times + 1
        return verdict
