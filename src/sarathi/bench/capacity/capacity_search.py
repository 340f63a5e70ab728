"""The capacity of a server: the rate search, its runs, and the folder that keeps them."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from sarathi.bench.capacity.rate_search import Search, Try
from sarathi.bench.capacity.verdict import CapacityTargets, Verdict, evaluate_runs
from sarathi.bench.results import PARTIAL, Capacity, Point, Run, load_run, run_name, save, write
from sarathi.errors import BenchmarkError

Measure = Callable[[Try], Run]
OnRun = Callable[[Try, Run, Verdict], None]  # the verdict is on all runs of the rate so far

_RUN_NAME = re.compile(
    r"run-(?P<rate>\d+(\.\d+)?(e[+-]\d+)?)(-(?P<repeat>[2-9]|[1-9]\d{1,5}))?\.json\.gz", re.ASCII
)
_HASH_DIGITS = 12
_NAME_LENGTH = 60  # characters of what people read

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class CapacitySearch:
    """The search of one server, one run at a time, so that several can alternate.

    Runs that are already in the store are not repeated.

    Raises:
        BenchmarkError: the store cannot be read.
    """

    search: Search  # a new one
    store: SearchStore  # opened
    targets: CapacityTargets
    measure: Measure  # makes a run; called again for the same if that was invalid
    on_run: OnRun  # called with each run, those of the store first

    def __post_init__(self) -> None:
        self._points: dict[float, Point] = {}
        self._num_runs: dict[float, int] = {}
        self._about: dict[str, Any] = {}
        for rate, repeat, run in self.store.runs():
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
        wanted = self.search.next()
        if wanted is not None:
            run = self._valid_run(wanted)
            self.store.keep(wanted.rate, wanted.repeat, run)
            self._add(wanted, run)
        return self.search.next() is not None

    def result(self, resolution: float, requests_per_point: int) -> Capacity:
        """Return the outcome so far, after at least one run.

        Args:
            resolution: of the search.
            requests_per_point: of the runs.
        """
        return Capacity(
            **self._about,
            tbt_target=self.targets.tbt,
            delay_target=self.targets.delay,
            tail_delay_target=self.targets.tail_delay,
            resolution=resolution,
            requests_per_point=requests_per_point,
            capacity=self.search.capacity,
            low=self.search.low,
            high=self.search.high,
            points=self.points,
        )

    def _valid_run(self, wanted: Try) -> Run:
        what = f"the run at {wanted.rate:g} requests per second"
        run = self.measure(wanted)
        if run.invalid is not None:
            logger.warning("%s is made again: %s", what, run.invalid)
            run = self.measure(wanted)
        if run.invalid is not None:
            raise BenchmarkError(
                f"{what} was invalid twice: {run.invalid}; the runs before it are kept in "
                f"{self.store.folder}, and the same command goes on from there"
            )
        return run

    def _add(self, made: Try, run: Run) -> None:
        # Runs are not kept in memory: their objects would slow down the client that measures.
        rate = made.rate
        before = [self.store.load(rate, repeat) for repeat in range(made.repeat)]
        runs = [*before, run]
        verdict, summary = evaluate_runs(runs, self.targets)
        self.search.record(rate, verdict.met, verdict.certain)
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
        about = ("label", "server", "model", "workload", "machine")
        self._about = {name: getattr(run, name) for name in about}
        self.on_run(made, run, verdict)


class SearchStore:
    """A separate folder for each configuration, so that a search finds the runs of an earlier one
    with the same configuration.

    It holds `config.json`, a `run-RATE.json.gz` for each run (`run-RATE-2.json.gz` for the second
    at a rate, and so on), and `result.json` once the search is done. Runs are compressed, to a
    third: the times of a million tokens are 9 MB of digits.
    """

    def __init__(self, root: Path, name: str, configuration: Mapping[str, object]) -> None:
        """
        Args:
            root: the parent folder, made if needed.
            name: the readable part of the name of the folder, before a hash.
            configuration: everything that changes the outcome of a run.
        """
        canonical = msgspec.json.encode(configuration, order="deterministic")
        digest = hashlib.sha256(canonical).hexdigest()[:_HASH_DIGITS]
        self.folder = root / "-".join(filter(None, (_slug(name), digest)))
        self._configuration = msgspec.json.format(canonical)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Lock the folder for this process; the other methods need this context.

        Raises:
            BenchmarkError: the folder cannot be written, or another process writes to it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "lock").open("wb")
        except OSError as error:
            raise _unwritable(self.folder, error) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for partial in self.folder.glob(f"*{PARTIAL}"):
                    partial.unlink()
            except BlockingIOError:
                raise BenchmarkError(
                    f"another process is measuring the same into {self.folder}"
                ) from None
            except OSError as error:
                raise _unwritable(self.folder, error) from None
            write(self.folder / "config.json", self._configuration)
            yield

    def runs(self) -> Iterator[tuple[float, int, Run]]:
        """Yield rate, number and content of each run, those of one rate in order.

        One at a time, as they are large. An unreadable file is renamed, with a warning.
        """
        for _, repeat, path in sorted(self._numbered()):
            try:
                run = load_run(path)
                if run.rate is None or run_name(run.rate, repeat) != path.name:
                    raise BenchmarkError(f"{path} does not have the rate of its name")
            except BenchmarkError as error:
                aside = path.with_name(f"{path.name}.unreadable")
                try:
                    path.replace(aside)
                except OSError as problem:
                    raise _unwritable(path, problem) from None
                logger.warning(
                    "%s; it is now %s, and its rate may be measured again", error, aside.name
                )
            else:
                yield run.rate, repeat, run

    def load(self, rate: float, repeat: int) -> Run:
        """Read a run.

        Raises:
            BenchmarkError: the file is missing or damaged.
        """
        return load_run(self.folder / run_name(rate, repeat))

    def keep(self, rate: float, repeat: int, run: Run) -> None:
        """Save a run, with its number among those of its rate; it is on disk when this returns.

        Raises:
            BenchmarkError: it cannot be written.
        """
        save(self.folder / run_name(rate, repeat), run)

    def _numbered(self) -> Iterator[tuple[float, int, Path]]:
        for path in self.folder.iterdir():
            match = _RUN_NAME.fullmatch(path.name)
            if match is not None:
                yield float(match["rate"]), int(match["repeat"] or 1) - 1, path


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower())[:_NAME_LENGTH].strip("-.")


def _unwritable(path: Path, error: OSError) -> BenchmarkError:
    return BenchmarkError(f"{path} cannot be written: {error.strerror or error}")
