"""The data of a report, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from sarathi.bench.report.table import milliseconds, rate
from sarathi.bench.results import Capacity, Run
from sarathi.telemetry import Summary
from sarathi.telemetry.iteration_log import IterationLine

_MOST_SHOWN = 6  # runs of one label in one figure


@dataclass(frozen=True)
class CapacityWithRuns:
    """A capacity search, and those of its runs whose files exist."""

    capacity: Capacity
    runs: Sequence[Run] = ()


@dataclass(frozen=True)
class LoadGroup:
    """A rate at which a server was measured, by itself or in a search."""

    label: str
    rate: float  # requests per second; the measured one where none was given
    summary: Summary
    state: str  # "met" or "missed" in a search, else "" or "invalid"
    stopped: bool  # early: latencies are those of requests that had ended, hence too short
    certain: bool = True  # other requests would give the same state
    reason: str = ""  # of the state, in a search

    @property
    def note(self) -> str:
        return ", ".join(filter(None, (self.state, "stopped" if self.stopped else "")))


@dataclass(frozen=True)
class ReportData:
    """Everything that was measured. Labels are in the order of their first use."""

    runs: Sequence[Run] = ()
    capacities: Sequence[CapacityWithRuns] = ()
    iterations: Sequence[IterationLine] = ()

    @cached_property
    def capacity_results(self) -> tuple[Capacity, ...]:
        return tuple(found.capacity for found in self.capacities)

    @cached_property
    def all_runs(self) -> tuple[Run, ...]:
        """All runs, including those of searches."""
        return (*self.runs, *(run for found in self.capacities for run in found.runs))

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """All labels; the index of a label is also that of its colour."""
        everything: tuple[Run | Capacity, ...] = (*self.runs, *self.capacity_results)
        return tuple(dict.fromkeys(one.label for one in everything))

    @cached_property
    def loads(self) -> tuple[LoadGroup, ...]:
        """All loads, by label, then by rate."""
        found = [
            LoadGroup(
                run.label,
                rate_of(run),
                run.summary,
                "" if run.invalid is None else "invalid",
                run.stopped is not None,
            )
            for run in self.runs
        ]
        found += self.searched_loads
        return tuple(sorted(found, key=lambda load: (self.labels.index(load.label), load.rate)))

    @cached_property
    def searched_loads(self) -> tuple[LoadGroup, ...]:
        """Every rate that the searches tried, search by search."""
        return tuple(
            LoadGroup(
                capacity.label,
                point.rate,
                point.summary,
                "met" if point.met else "missed",
                point.stopped,
                point.certain,
                point.reason,
            )
            for capacity in self.capacity_results
            for point in capacity.points
        )

    @cached_property
    def targets(self) -> tuple[float, ...]:
        """Targets of TBT in seconds: for P99 in searches, for the longest gap in other runs."""
        return tuple(sorted({target for _, target in self._labelled_targets}))

    @property
    def _labelled_targets(self) -> list[tuple[str, float]]:
        found = [(one.label, one.tbt_target) for one in self.capacity_results]
        of_runs = [(run.label, run.targets.tbt) for run in self.runs if run.targets]
        return found + [(label, target) for label, target in of_runs if target]

    @property
    def tbt_targets(self) -> list[tuple[float, str]]:
        """Targets of TBT in milliseconds, with their texts in figures."""
        return [(1000 * target, f"target {milliseconds(target)}") for target in self.targets]

    def target_of(self, label: str) -> float | None:
        """Return the strictest target of TBT for a label."""
        own = [target for owner, target in self._labelled_targets if owner == label]
        return min(own or self.targets, default=None)

    @cached_property
    def shown(self) -> tuple[Run, ...]:
        """The runs that figures compare.

        For several labels, one run of each, at rates as near to one another as there are: the
        highest of these that at least one label can take. For one label, some of all its rates.
        Runs that were stopped are not shown where there are others.
        """
        by_label: dict[str, list[Run]] = {}
        for label in self.labels:
            runs = [run for run in self.all_runs if run.label == label]
            if runs:
                by_label[label] = [run for run in runs if run.stopped is None] or runs
        if len(by_label) == 1:
            [runs] = by_label.values()
            runs = sorted(runs, key=rate_of)
            some = np.linspace(0, len(runs) - 1, min(len(runs), _MOST_SHOWN)).round()
            return tuple(runs[int(i)] for i in some)
        if not by_label:
            return ()

        def nearest(rate: float) -> list[Run]:
            return [min(runs, key=partial(_distance, rate)) for runs in by_label.values()]

        missed = {(load.label, load.rate) for load in self.loads if load.state == "missed"}

        def badness(rate: float) -> tuple[float, bool, float]:
            found = nearest(rate)
            apart = sum(_distance(rate, run) for run in found)
            return round(apart, 6), {(run.label, rate_of(run)) for run in found} <= missed, -rate

        rates = [rate_of(run) for runs in by_label.values() for run in runs]
        return tuple(nearest(min(rates, key=badness)))

    def name(self, run: Run) -> str:
        """Return the label of a run, with its rate where several runs are shown."""
        return run.label + self.rest_of_name(run)

    def rest_of_name(self, run: Run) -> str:
        """Return what follows the label in the name of a run."""
        return "" if len(self.shown) == 1 else f", {rate(rate_of(run))}"


def rate_of(run: Run) -> float:
    """Return the requested rate of a run, or else the measured one."""
    return run.summary.request_rate if run.rate is None else run.rate


def _distance(rate: float, run: Run) -> float:
    """Return 0 for a run at this rate, towards 1 for one at a very different rate."""
    return abs(rate - rate_of(run)) / max(rate, rate_of(run), 1e-9)
