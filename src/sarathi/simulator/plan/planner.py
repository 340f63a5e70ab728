"""Tries candidates, the cheapest first, and leaves out what cannot be worth its money."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sarathi.simulator.parallel import run_all
from sarathi.simulator.plan.candidates import Candidate, DeviceLayout, Rejected
from sarathi.simulator.plan.confirm import ConfirmJob, confirm
from sarathi.simulator.plan.estimate import guessed_cost, mean_request
from sarathi.simulator.plan.evaluate import EvaluationJob, PlanChoice, evaluate
from sarathi.simulator.plan.pareto_front import on_front
from sarathi.simulator.plan.plan_targets import PlanTerms
from sarathi.system.machine import usable_cores

_ROUNDING = 1e-9  # relative
_GUESS = 2.0  # times the lowest guessed cost, which the cheapest plan hardly exceeds

TellOne = Callable[[PlanChoice | Rejected], None]


@dataclass(frozen=True)
class PlanResult:
    """Choices from the cheapest on; of equal cost, the one with the shorter P99 TBT first."""

    choices: list[PlanChoice]
    rejected: list[Rejected]
    explored: float  # times the cost of the cheapest, up to which every candidate was tried

    @property
    def cheapest(self) -> PlanChoice | None:
        return self.choices[0] if self.choices else None

    @property
    def tbt_front(self) -> list[PlanChoice]:
        """Choices such that no other costs as little and has as short a P99 TBT."""
        return _front(self.choices, tbt)

    @property
    def ttft_front(self) -> list[PlanChoice]:
        """Likewise with P90 TTFT."""
        return _front(self.choices, ttft)

    @property
    def notable(self) -> set[DeviceLayout]:
        """The cheapest, and those on either front."""
        return {one.layout for one in (*self.choices[:1], *self.tbt_front, *self.ttft_front)}


def tbt(choice: PlanChoice) -> float:
    """P99 in seconds; answers of one token each have none."""
    return choice.run.summary.tbt.p99 or 0.0


def ttft(choice: PlanChoice) -> float:
    """P90 in seconds."""
    return choice.run.summary.ttft.p90 or 0.0


def make_plan(
    candidates: Sequence[Candidate],
    terms: PlanTerms,
    *,
    explore: float = 1.5,
    router: str = "round_robin",
    tell: TellOne = lambda one: None,
    workers: int | None = None,
) -> PlanResult:
    """
    Args:
        explore: candidates are tried as far as they may cost so many times as much as the cheapest
            that was found; at least 1, and infinite to try them all. The cheapest is the same in
            any case, and both fronts are complete up to this cost.
        tell: is called with each candidate that has been tried or left out.
        workers: processes; None: one for each core.

    Raises:
        BenchmarkError: the workload cannot be had.
    """
    planner = _Planner(candidates, terms, explore, router, tell, workers)
    while planner.left:
        planner.try_all()
        planner.confirm()
        planner.reopen()
    return planner.planned


class _Planner:
    def __init__(
        self,
        candidates: Sequence[Candidate],
        terms: PlanTerms,
        explore: float,
        router: str,
        tell: TellOne,
        workers: int | None,
    ) -> None:
        promises = {}
        for candidate in candidates:
            mean = mean_request(terms, candidate.setup.max_model_len)
            promises[candidate.layout] = guessed_cost(candidate, terms, mean)
        self._candidates = {candidate.layout: candidate for candidate in candidates}
        self.left = sorted(candidates, key=lambda one: promises[one.layout])
        self._first_limit = _GUESS * explore * min(promises.values(), default=math.inf)
        self._terms, self._explore, self._router = terms, explore, router
        self._tell, self._workers = tell, workers
        self._choices: dict[DeviceLayout, PlanChoice] = {}
        self._rejected: dict[DeviceLayout, Rejected] = {}
        self._limits: dict[DeviceLayout, float] = {}  # dollars an hour above which one was left out

    @property
    def planned(self) -> PlanResult:
        choices = sorted(self._choices.values(), key=lambda one: (one.cost, tbt(one)))
        return PlanResult(choices, list(self._rejected.values()), self._explore)

    @property
    def _limit(self) -> float:
        """Dollars an hour that a candidate may cost."""
        return self._explore * min((one.cost for one in self._choices.values()), default=math.inf)

    def try_all(self) -> None:
        """In batches. The first find a price; each of the others then mostly takes one run.

        Until there is one, a guess takes its place: should it be too low, `reopen` mends it.
        """
        number = self._workers or usable_cores()
        while self.left:
            limit = min(self._limit, self._first_limit)
            jobs: list[EvaluationJob] = []
            while self.left and len(jobs) < number:
                candidate = self.left.pop(0)
                most = _most_replicas(candidate, limit)
                if most == 0:
                    rejected = _unaffordable(candidate, limit)
                    self._keep(rejected, limit)
                    self._tell(rejected)
                else:
                    jobs.append(EvaluationJob(candidate, self._terms, most))
            for one in run_all(evaluate, jobs, done=self._done, workers=self._workers):
                self._keep(one, limit)
            number *= 2

    def confirm(self) -> None:
        """The cheapest, and the fronts. One may need more replicas, and leave them to others."""
        while True:
            notable = self.planned.notable
            jobs = [
                ConfirmJob(one, self._candidates[one.layout], self._terms, self._router)
                for one in self.planned.choices
                if one.layout in notable and not one.confirmed
            ]
            if not jobs:
                return
            for one in run_all(confirm, jobs, workers=self._workers):
                self._choices.pop(one.layout)
                self._keep(one, math.inf)

    def reopen(self) -> None:
        """Look again at what was left out for a price that has turned out to be too low."""
        self._first_limit = math.inf
        for layout, limit in list(self._limits.items()):
            if limit < self._limit * (1 - _ROUNDING):
                del self._limits[layout], self._rejected[layout]
                self.left.append(self._candidates[layout])

    def _keep(self, one: PlanChoice | Rejected, limit: float) -> None:
        if isinstance(one, PlanChoice):
            self._choices[one.layout] = one
            return
        self._rejected[one.layout] = one
        if one.kind == "costs more":
            self._limits[one.layout] = limit

    def _done(self, index: int, one: PlanChoice | Rejected) -> None:
        self._tell(one)


def _most_replicas(candidate: Candidate, limit: float) -> int | None:
    """
    Args:
        limit: dollars an hour.
    """
    if math.isinf(limit):
        return None
    return math.floor(limit / candidate.replica_price * (1 + _ROUNDING))


def _unaffordable(candidate: Candidate, limit: float) -> Rejected:
    reason = f"one replica alone costs more than ${limit:.2f} an hour"
    return Rejected(candidate.layout, "costs more", reason)


def _front(choices: list[PlanChoice], latency: Callable[[PlanChoice], float]) -> list[PlanChoice]:
    members = on_front([(choice.cost, latency(choice)) for choice in choices])
    return [choice for choice, member in zip(choices, members, strict=True) if member]
