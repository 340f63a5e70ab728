"""The data of a report, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sarathi.bench.report.table import milliseconds, rate
from sarathi.bench.results import Capacity, Run
from sarathi.telemetry import Summary
from sarathi.telemetry.iteration_log import IterationLine

# Searches have "met" and "missed".
State = Literal["", "met", "missed", "invalid"]

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
    state: State
    stopped: bool  # early: latencies are those of requests that had ended, hence too short

    @property
    def note(self) -> str:
        return ", ".join(filter(None, (self.state, "stopped" if self.stopped else "")))


@dataclass(frozen=True)
class ReportData:
    """Everything that was measured. Labels are in the order of their first use."""

    runs: tuple[Run, ...]
    capacities: tuple[CapacityWithRuns, ...]
    iterations: tuple[IterationLine, ...]

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
        found = [_load_of(run) for run in self.runs]
        for capacity in self.capacity_results:
            for point in capacity.points:
                state: State = "met" if point.met else "missed"
                found.append(
                    LoadGroup(capacity.label, point.rate, point.summary, state, point.stopped)
                )
        return tuple(sorted(found, key=lambda load: (self.labels.index(load.label), load.rate)))

    @cached_property
    def targets(self) -> tuple[float, ...]:
        """Targets of TBT in seconds: for P99 in searches, for the longest gap in other runs."""
        of_runs = {run.targets.tbt for run in self.runs if run.targets and run.targets.tbt}
        return tuple(sorted(of_runs | {found.tbt_target for found in self.capacity_results}))

    @property
    def tbt_targets(self) -> list[tuple[float, str]]:
        """Targets of TBT in milliseconds, with their texts in figures."""
        return [(1000 * target, f"target {milliseconds(target)}") for target in self.targets]

    def target_of(self, label: str) -> float | None:
        """Return the strictest target of TBT for a label."""
        own = [c.tbt_target for c in self.capacity_results if c.label == label]
        own += [
            run.targets.tbt
            for run in self.runs
            if run.label == label and run.targets and run.targets.tbt
        ]
        return min(own or self.targets, default=None)

    @cached_property
    def shown(self) -> tuple[Run, ...]:
        """The runs that figures compare.

        For several labels, one run of each, at rates as near to one another as there are: the
        highest of these that at least one label can take. For one label, some of all its rates.
        Runs that were stopped are not shown where there are others.
        """
        by_label = {label: self._whole_runs(label) for label in self.labels}
        by_label = {label: runs for label, runs in by_label.items() if runs}
        if len(by_label) == 1:
            (runs,) = by_label.values()
            return _spread(sorted(runs, key=rate_of))
        if not by_label:
            return ()

        def nearest(rate: float) -> list[Run]:
            return [
                min(runs, key=lambda run: _distance(rate, rate_of(run)))
                for runs in by_label.values()
            ]

        missed = {(load.label, load.rate) for load in self.loads if load.state == "missed"}

        def badness(rate: float) -> tuple[float, bool, float]:
            found = nearest(rate)
            apart = sum(_distance(rate, rate_of(run)) for run in found)
            return round(apart, 6), {(run.label, rate_of(run)) for run in found} <= missed, -rate

        rates = [rate_of(run) for runs in by_label.values() for run in runs]
        return tuple(nearest(min(rates, key=badness)))

    def _whole_runs(self, label: str) -> list[Run]:
        """Return the runs of a label that were not stopped, or else all."""
        runs = [run for run in self.all_runs if run.label == label]
        return [run for run in runs if run.stopped is None] or runs

    def name(self, run: Run) -> str:
        """Return the label of a run, with its rate where several runs are shown."""
        return run.label + self.rest_of_name(run)

    def rest_of_name(self, run: Run) -> str:
        """Return what follows the label in the name of a run."""
        return "" if len(self.shown) == 1 else f", {rate(rate_of(run))}"


def rate_of(run: Run) -> float:
    """Return the requested rate of a run, or else the measured one."""
    return run.summary.request_rate if run.rate is None else run.rate


def _load_of(run: Run) -> LoadGroup:
    state: State = "" if run.invalid is None else "invalid"
    return LoadGroup(run.label, rate_of(run), run.summary, state, run.stopped is not None)


def _distance(one: float, other: float) -> float:
    """Return 0 for equal rates, towards 1 for very different ones."""
    return abs(one - other) / max(one, other, 1e-9)


def _spread(runs: list[Run]) -> tuple[Run, ...]:
    if len(runs) <= _MOST_SHOWN:
        return tuple(runs)
    last = len(runs) - 1
    return tuple(runs[round(i * last / (_MOST_SHOWN - 1))] for i in range(_MOST_SHOWN))
