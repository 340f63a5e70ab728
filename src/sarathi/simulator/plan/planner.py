"""The search over candidates, the cheapest first; what must cost more is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from sarathi.simulator.parallel import run_all
from sarathi.simulator.plan.replica_sizing import (
    Candidate,
    DeviceLayout,
    PlanChoice,
    PlanSettings,
    Rejected,
    confirm,
    estimated_cost,
    evaluate_candidate,
    mean_request,
)
from sarathi.system.machine import usable_cores

_ROUNDING = 1e-9  # relative
_ESTIMATE = 2.0  # times the lowest estimated cost, which the cheapest plan hardly exceeds

OnCandidate = Callable[[PlanChoice | Rejected], None]


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
        return _front(self.choices, lambda one: one.tbt)

    @property
    def ttft_front(self) -> list[PlanChoice]:
        """Likewise with P90 TTFT."""
        return _front(self.choices, lambda one: one.ttft)

    @property
    def notable(self) -> set[DeviceLayout]:
        """The cheapest, and those on either front."""
        return {one.layout for one in (*self.choices[:1], *self.tbt_front, *self.ttft_front)}


def make_plan(
    candidates: Sequence[Candidate],
    options: PlanSettings,
    *,
    explore: float = 1.5,
    router: str = "round_robin",
    on_candidate: OnCandidate = lambda one: None,
    workers: int | None = None,
) -> PlanResult:
    """Find the cheapest deployments that serve a load.

    Args:
        explore: candidates are tried as far as they may cost so many times as much as the cheapest
            that was found; at least 1, and infinite to try them all. The cheapest is the same in
            any case, and both fronts are complete up to this cost.
        on_candidate: called with each candidate that has been tried or left out.
        workers: processes; None: one for each core.

    Raises:
        BenchmarkError: the workload cannot be made.
    """
    planner = _Planner(candidates, options, explore, router, on_candidate, workers)
    while planner.left:
        planner.try_all()
        planner.confirm()
        planner.reopen()
    return planner.planned


@dataclass
class _Planner:
    """See `make_plan`."""

    candidates: Sequence[Candidate]
    options: PlanSettings
    explore: float
    router: str
    on_candidate: OnCandidate
    workers: int | None

    def __post_init__(self) -> None:
        estimates = {
            one.layout: estimated_cost(one, self.options, mean_request(self.options, one.setup))
            for one in self.candidates
        }
        self._by_layout = {one.layout: one for one in self.candidates}
        self.left = sorted(self.candidates, key=lambda one: estimates[one.layout])
        self._first_limit = _ESTIMATE * self.explore * min(estimates.values(), default=math.inf)
        self._found: dict[DeviceLayout, PlanChoice | Rejected] = {}
        self._limits: dict[DeviceLayout, float] = {}  # dollars an hour above which one was left out

    @property
    def planned(self) -> PlanResult:
        """What is known by now."""
        found = self._found.values()
        choices = [one for one in found if isinstance(one, PlanChoice)]
        choices.sort(key=lambda one: (one.cost, one.tbt))
        return PlanResult(
            choices, [one for one in found if isinstance(one, Rejected)], self.explore
        )

    @property
    def _limit(self) -> float:
        """Dollars an hour that a candidate may cost."""
        cheapest = self.planned.cheapest
        return math.inf if cheapest is None else self.explore * cheapest.cost

    def try_all(self) -> None:
        """Evaluate candidates in batches.

        The first find a price; each of the others then mostly takes one run. Until there is a
        price, an estimate takes its place; if it is too low, `reopen` corrects it.
        """
        number = self.workers or usable_cores()
        while self.left:
            limit = min(self._limit, self._first_limit)
            jobs: list[Callable[[], PlanChoice | Rejected]] = []
            while self.left and len(jobs) < number:
                candidate = self.left.pop(0)
                most = None  # replicas that the limit pays for; None: any number
                if not math.isinf(limit):
                    most = math.floor(limit / candidate.replica_price * (1 + _ROUNDING))
                if most != 0:
                    jobs.append(partial(evaluate_candidate, candidate, self.options, most))
                    continue
                reason = f"one replica alone costs more than ${limit:.2f} an hour"
                rejected = Rejected(candidate.layout, "costs more", reason)
                self._keep(rejected, limit)
                self.on_candidate(rejected)
            for one in run_all(
                jobs, on_result=lambda _, one: self.on_candidate(one), workers=self.workers
            ):
                self._keep(one, limit)
            number *= 2

    def confirm(self) -> None:
        """Simulate the cheapest and the fronts with all replicas, until none of them changes."""
        while True:
            notable = self.planned.notable
            jobs = [
                partial(confirm, one, self._by_layout[one.layout], self.options, self.router)
                for one in self.planned.choices
                if one.layout in notable and not one.confirmed
            ]
            if not jobs:
                return
            for one in run_all(jobs, workers=self.workers):
                del self._found[one.layout]
                self._keep(one, math.inf)

    def reopen(self) -> None:
        """Try candidates again that were left out for a price that turned out to be too low."""
        self._first_limit = math.inf
        most = self._limit * (1 - _ROUNDING)
        for one in self.planned.rejected:
            if one.kind == "costs more" and self._limits[one.layout] < most:
                del self._found[one.layout]
                self.left.append(self._by_layout[one.layout])

    def _keep(self, one: PlanChoice | Rejected, limit: float) -> None:
        self._found[one.layout], self._limits[one.layout] = one, limit


def _front(choices: list[PlanChoice], latency: Callable[[PlanChoice], float]) -> list[PlanChoice]:
    on = on_front([(choice.cost, latency(choice)) for choice in choices])
    return [choice for choice, chosen in zip(choices, on, strict=True) if chosen]


def on_front(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """Return for each point whether it is on the Pareto front: no other dominates it.

    Less is better in every coordinate. Equal points do not dominate one another.
    """
    return [not any(dominates(other, point) for other in points) for point in points]


def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Return whether one is at least as good in everything, and better in something."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
