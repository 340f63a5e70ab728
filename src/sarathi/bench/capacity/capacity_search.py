"""The capacity of a server: the rate search, its runs, and the folder that keeps them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sarathi.bench.capacity.rate_search import Search, Try
from sarathi.bench.capacity.search_store import SearchStore
from sarathi.bench.capacity.verdict import CapacityTargets, Verdict, evaluate_runs
from sarathi.bench.results import Capacity, Point, Run, run_name
from sarathi.errors import BenchmarkError

Measure = Callable[[Try], Run]
OnRun = Callable[[Try, Run, Verdict], None]

logger = logging.getLogger(__name__)


class CapacitySearch:
    """The search of one server, one run at a time, so that several can alternate.

    Runs that are already in the store are not repeated.
    """

    def __init__(
        self,
        search: Search,
        store: SearchStore,
        targets: CapacityTargets,
        measure: Measure,
        on_run: OnRun,
    ) -> None:
        """
        Args:
            search: a new one.
            store: opened.
            measure: makes a run; called again for the same if that was invalid.
            on_run: called with each run, those of the store first, and the verdict on all runs of
                its rate so far.

        Raises:
            BenchmarkError: the store cannot be read.
        """
        self.store = store
        self._search = search
        self._targets = targets
        self._measure = measure
        self._on_run = on_run
        self._points: dict[float, Point] = {}
        self._num_runs: dict[float, int] = {}
        self._about: dict[str, str] = {}
        self._workload: dict[str, str] = {}
        for rate, repeat, run in store.runs():
            # After a gap (an unreadable file), the runs of this rate are measured again.
            if repeat == self._num_runs.get(rate, 0):
                self._add(Try(rate, repeat), run)

    @property
    def points(self) -> list[Point]:
        """The points so far, in the order of rates. Repeated runs of a rate are one point."""
        return [self._points[rate] for rate in sorted(self._points)]

    @property
    def runs(self) -> list[Run]:
        """All runs, read from the store, in the order of rates.

        Raises:
            BenchmarkError: a file is missing.
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
            BenchmarkError: the run failed, was invalid twice, or cannot be written. Earlier runs
                are kept.
        """
        wanted = self._search.next()
        if wanted is not None:
            run = self._valid_run(wanted)
            self.store.keep(wanted.rate, wanted.repeat, run)
            self._add(wanted, run)
        return self._search.next() is not None

    def result(self, resolution: float, requests_per_point: int) -> Capacity:
        """Return the outcome so far, after at least one run.

        Args:
            resolution: of the search.
            requests_per_point: of the runs.
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
        verdict, summary = evaluate_runs(runs, self._targets)
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
        self._on_run(made, run, verdict)
