"""Capacities under several targets, all judged on the same runs."""

from __future__ import annotations

from dataclasses import dataclass

from sarathi.bench.capacity.rate_search import Search
from sarathi.bench.capacity.verdict import CapacityTargets, evaluate
from sarathi.bench.number_format import number
from sarathi.simulator.reproduction.experiment import Comparison, Published, gain
from sarathi.simulator.reproduction.settings import (
    Dataset,
    Options,
    System,
    Testbed,
    setup_of,
    workload_of,
)
from sarathi.simulator.simulated_run import SimulatedLoad, simulated_run
from sarathi.telemetry import Summary

RESOLUTION = 0.1
_DELAY = 2.0  # seconds of median scheduling delay, as in the paper
_HALVINGS = 6  # of the first rate: a run of few requests a minute is a long one


@dataclass(frozen=True)
class FoundCapacity:
    """Rates are requests per second."""

    target: float  # seconds of P99 TBT
    capacity: float | None  # None: no rate that was tried met the target
    low: float | None  # the highest rate that met it for certain
    high: float | None  # the lowest that missed it for certain
    bound: str  # what the lowest rate that missed it has missed
    lowest: float  # rate that was tried


@dataclass(frozen=True)
class CapacityJob:
    place: Testbed
    system: System
    dataset: Dataset
    targets: tuple[float, ...]  # seconds of P99 TBT
    start: float  # requests per second
    options: Options

    @property
    def title(self) -> str:
        return f"capacity of {self.place.title}, {self.dataset.name}, {self.system.title}"

    def run(self) -> tuple[FoundCapacity, ...]:
        runs: dict[tuple[float, int], Summary] = {}
        return tuple(self._search(target, runs) for target in self.targets)

    def _search(self, target: float, runs: dict[tuple[float, int], Summary]) -> FoundCapacity:
        """
        Args:
            runs: by rate and number of requests; what is found is put into it.
        """
        targets = CapacityTargets(target, _DELAY)
        search = Search(self.start, RESOLUTION, max_halvings=_HALVINGS)
        reasons: dict[float, tuple[bool, str]] = {}

        def record(rate: float, summary: Summary) -> None:
            verdict = evaluate(summary, targets)
            search.record(rate, verdict.met, verdict.certain)
            reasons[rate] = verdict.met, verdict.reason

        # What was run for another target says something of this one, too.
        for (rate, _), summary in sorted(runs.items(), key=lambda run: run[0]):
            record(rate, summary)
        while (attempt := search.next()) is not None:
            number = self.options.requests * 2**attempt.repeat
            key = attempt.rate, number
            if key not in runs:
                runs[key] = self._run(attempt.rate, number)
            record(attempt.rate, runs[key])
        missed = [rate for rate, (met, _) in reasons.items() if not met]
        above = [rate for rate in missed if rate > (search.capacity or 0)]
        return FoundCapacity(
            target,
            search.capacity,
            search.low,
            search.high,
            reasons[min(above)][1] if above else "",
            min(reasons),
        )

    def _run(self, rate: float, requests: int) -> Summary:
        load = SimulatedLoad(
            workload_of(self.dataset, self.options.traces), requests, 0, self.options.seed
        )
        setup = setup_of(self.place, self.system, self.dataset.max_total)
        return simulated_run(setup, load, rate, self.title, most_records=1).summary


def compared_gain(
    what: str, ours: FoundCapacity, theirs: FoundCapacity, published: Published, why: str = ""
) -> Comparison:
    """How many times their load is ours.

    Args:
        why: it differs from the published gain, unless that lies within what is certain of ours.
    """
    value = gain(ours.capacity, theirs.capacity)
    low, high = gain(ours.low, theirs.high), gain(ours.high, theirs.low)
    if low is None or high is None:
        return Comparison(what, value, published, "x", why)
    if low <= published.value <= high:
        why = "chance: the published gain is within the range that is certain of ours"
    note = f"for certain {number(low)}x to {number(high)}x"
    return Comparison(what, value, published, "x", why, note)
