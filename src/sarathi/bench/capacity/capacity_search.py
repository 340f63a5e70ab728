"""The capacity of a server: a search, the runs that it asks for, and the folder that keeps them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sarathi.bench.capacity.rate_search import Search, Try
from sarathi.bench.capacity.search_store import SearchStore
from sarathi.bench.capacity.verdict import CapacityTargets, Verdict, judge_runs
from sarathi.bench.result_files import run_name
from sarathi.bench.results import Capacity, Point, Run
from sarathi.errors import BenchmarkError

Measure = Callable[[Try], Run]
Tell = Callable[[Try, Run, Verdict], None]

logger = logging.getLogger(__name__)


class CapacitySearch:
    """One server's search, point by point, so that several can take turns.

    Runs that are in the store already are taken from there.
    """

    def __init__(
        self,
        search: Search,
        store: SearchStore,
        targets: CapacityTargets,
        measure: Measure,
        tell: Tell,
    ) -> None:
        """
        Args:
            search: a new one.
            store: opened.
            measure: makes a run. It may be asked for the same again, if that was invalid.
            tell: called with each run, those of the store first, and the verdict on all runs of its
                rate until then.

        Raises:
            BenchmarkError: the store cannot be read.
        """
        self.store = store
        self._search = search
        self._targets = targets
        self._measure = measure
        self._tell = tell
        self._points: dict[float, Point] = {}
        self._num_runs: dict[float, int] = {}
        self._about: dict[str, str] = {}
        self._workload: dict[str, str] = {}
        for rate, repeat, run in store.runs():
            # One after a gap, whose file could not be read, is measured again in its turn.
            if repeat == self._num_runs.get(rate, 0):
                self._add(Try(rate, repeat), run)

    @property
    def points(self) -> list[Point]:
        """What is known by now, in the order of rates. Repeated runs of a rate are one point."""
        return [self._points[rate] for rate in sorted(self._points)]

    @property
    def runs(self) -> list[Run]:
        """All of them, read from the store, in the order of rates.

        Raises:
            BenchmarkError: one is not there any more.
        """
        return [
            self.store.load(point.rate, repeat)
            for point in self.points
            for repeat in range(self._num_runs[point.rate])
        ]

    def step(self) -> bool:
        """Make the next run.

        Returns:
            Whether there are more to make; after the last, further steps do nothing.

        Raises:
            BenchmarkError: the run failed, was invalid twice, or cannot be written. Those before it
                are kept.
        """
        wanted = self._search.next()
        if wanted is not None:
            run = self._valid_run(wanted)
            self.store.keep(wanted.rate, wanted.repeat, run)
            self._add(wanted, run)
        return self._search.next() is not None

    def result(self, resolution: float, requests_per_point: int) -> Capacity:
        """What is known by now; at least one run must have been made.

        Args:
            resolution: what the search was made with.
            requests_per_point: likewise the runs.
        """
        return Capacity(
            **self._about,
            workload=self._workload,
            tbt_target=self._targets.tbt,
            delay_target=self._targets.delay,
            tail_delay_target=self._targets.tail_delay,
            resolution=resolution,
            requests_per_point=requests_per_point,
            capacity=self._search.capacity,
            low=self._search.low,
            high=self._search.high,
            points=self.points,
        )

    def _valid_run(self, wanted: Try) -> Run:
        run = self._measure(wanted)
        if run.invalid is None:
            return run
        what = f"the run at {wanted.rate:g} requests per second"
        logger.warning("%s is made again: %s", what, run.invalid)
        run = self._measure(wanted)
        if run.invalid is None:
            return run
        raise BenchmarkError(
            f"{what} was invalid twice: {run.invalid}; the runs before it are kept in "
            f"{self.store.folder}, and the same command goes on from there"
        )

    def _add(self, made: Try, run: Run) -> None:
        # Runs are not kept in memory: their objects would slow down the client that measures.
        rate = made.rate
        before = [self.store.load(rate, repeat) for repeat in range(made.repeat)]
        runs = [*before, run]
        verdict, summary = judge_runs(runs, self._targets)
        self._search.record(rate, verdict.met, verdict.certain)
        self._points[rate] = Point(
            rate=rate,
            met=verdict.met,
            reason=verdict.reason,
            certain=verdict.certain,
            stopped=any(one.stopped is not None for one in runs),
            summary=summary,
            run=run_name(rate, 0),
        )
        self._num_runs[rate] = made.repeat + 1
        self._workload = run.workload
        self._about = {name: getattr(run, name) for name in ("label", "server", "model", "machine")}
        self._tell(made, run, verdict)
