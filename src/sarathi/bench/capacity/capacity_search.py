"""The capacity of a server: bisection over request rates, its runs, and their folder."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec.structs import replace

from sarathi.bench.capacity.verdict import CapacityTargets, evaluate_runs
from sarathi.bench.results import (
    PARTIAL,
    Capacity,
    Point,
    Run,
    load_run,
    run_name,
    save,
    unwritable,
    write,
)
from sarathi.errors import BenchmarkError

_FINEST, _COARSEST = 0.01, 1.0  # resolutions
_SLOWEST, _FASTEST = 1e-6, 1e6  # requests per second, to begin with


@dataclass(frozen=True)
class Try:
    """A run that the search needs next."""

    rate: float  # requests per second
    repeat: int = 0  # above 0: with other requests than the earlier runs at this rate


@dataclass(frozen=True)
class _Rated:
    met: bool
    certain: bool
    runs: int


class Search:
    """Doubles or halves the rate until one meets the target and one misses it, then bisects.

    Steps are shorter from a rate whose verdict is uncertain.

    The middle is the geometric one: the resolution is relative, and each step then halves the
    remaining distance, whether rates are 0.01 or 1000.

    Verdicts near the capacity depend on the sampled requests, and a bisection that trusts a wrong
    one ends at a wrong rate without notice. So verdicts are certain or not, and:

    - Whatever the order of the verdicts, the highest rate that certainly met, `low`, and
      the lowest that certainly missed, `high`, are the bounds; a certain miss outweighs what
      met above it. Between the two the search believes the split that fewest of the uncertain
      verdicts contradict, the lowest of several such.
    - Once the two rates beside the split are close enough, one whose verdict is uncertain is run
      again, the lower first. The caller then judges all its runs together, and the new verdict
      replaces the old. If it changes, the split moves and the search goes on from there.
    - A rate is run at most twice, for right at the capacity no number of runs would make it
      certain. Rates are rounded to three digits between fixed ends, so the search
      ends whatever the verdicts are.
    """

    def __init__(self, start: float, resolution: float, *, max_halvings: int = 10) -> None:
        """
        Args:
            start: requests per second, tried first.
            resolution: relative distance of the two rates that the search ends with, unless nothing
                lies between them but rates of more than three digits.
            max_halvings: of `start`; the capacity is None if even the lowest of these rates misses.

        Raises:
            BenchmarkError: the start or the resolution is out of range.
        """
        if not _SLOWEST <= start <= _FASTEST:
            raise BenchmarkError(
                f"the first rate is {start:g}, expected {_SLOWEST:g} to {_FASTEST:g} per second"
            )
        if not _FINEST <= resolution <= _COARSEST:
            raise BenchmarkError(
                f"the resolution is {resolution:g}, expected {_FINEST:g} to {_COARSEST:g}"
            )
        self.resolution = resolution
        self._start = _rounded(start)
        self._lowest = start / 2**max_halvings
        self._highest = start * 2**12
        self._rated: dict[float, _Rated] = {}

    def next(self) -> Try | None:
        """Return the next run, the same until a verdict is recorded; None when done."""
        rate = self._untried()
        return self._doubtful() if rate is None else Try(rate)

    def record(self, rate: float, met: bool, certain: bool) -> None:
        """Record the verdict on all runs at a rate, the requested one or another."""
        before = self._rated.get(rate)
        self._rated[rate] = _Rated(met, certain, 1 if before is None else before.runs + 1)

    @property
    def capacity(self) -> float | None:
        """The highest rate believed to meet the target; None: no tried rate does."""
        return self._split()[0]

    @property
    def low(self) -> float | None:
        """The highest rate that certainly met, below every certain miss."""
        high = self.high or math.inf
        met = [r for r, rated in self._rated.items() if rated.certain and rated.met and r < high]
        return max(met, default=None)

    @property
    def high(self) -> float | None:
        """The lowest rate that certainly missed."""
        missed = [r for r, rated in self._rated.items() if rated.certain and not rated.met]
        return min(missed, default=None)

    def _split(self) -> tuple[float | None, float | None]:
        """Return adjacent rates, one believed to meet the target and one to miss it."""
        low, high = self.low, self.high
        open_rates = sorted(r for r in self._rated if (low or 0) < r < (high or math.inf))
        met = [self._rated[rate].met for rate in open_rates]

        def contradictions(below: int) -> int:
            return met[:below].count(False) + met[below:].count(True)

        below = min(range(len(met) + 1), key=contradictions)
        rates = [low, *open_rates, high]
        return rates[below], rates[below + 1]

    def _untried(self) -> float | None:
        if not self._rated:
            return self._start
        met, missed = self._split()
        if missed is None:
            assert met is not None
            above = _rounded(min(met * self._step(met), self._highest))
            return above if above > met else None
        if met is None:
            below = _rounded(max(missed / self._step(missed), self._lowest))
            return below if below < missed else None
        if missed / met - 1 <= self.resolution:
            return None
        middle = _rounded(math.sqrt(met) * math.sqrt(missed))
        return middle if met < middle < missed else None

    def _step(self, rate: float) -> float:
        """Return the factor to the next rate: an uncertain verdict means that the end is near."""
        return 2.0 if self._rated[rate].certain else math.sqrt(2)

    def _doubtful(self) -> Try | None:
        for rate in self._split():
            rated = None if rate is None else self._rated[rate]
            if rate and rated and not rated.certain and rated.runs < 2:
                return Try(rate, rated.runs)
        return None


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def judge_rate(
    search: Search, rate: float, runs: Sequence[Run], targets: CapacityTargets, file: str = ""
) -> Point:
    """Evaluate all runs at a rate together, and record the verdict in the search.

    `file` is that of the first run, beside the result.
    """
    verdict, summary = evaluate_runs(runs, targets)
    search.record(rate, verdict.met, verdict.certain)
    return Point(
        rate=rate,
        met=verdict.met,
        reason=verdict.reason,
        certain=verdict.certain,
        stopped=any(run.stopped is not None for run in runs),
        summary=summary,
        run=file,
    )


def search_result(
    search: Search,
    targets: CapacityTargets,
    points: Mapping[float, Point],
    run: Run,
    requests_per_point: int,
) -> Capacity:
    """Return the outcome of a search; `run` is any of it, for what all of them have in common."""
    return Capacity(
        label=run.label,
        server=run.server,
        model=run.model,
        workload=run.workload,
        machine=run.machine,
        tbt_target=targets.tbt,
        delay_target=targets.delay,
        tail_delay_target=targets.tail_delay,
        requests_per_point=requests_per_point,
        resolution=search.resolution,
        capacity=search.capacity,
        low=search.low,
        high=search.high,
        points=[points[rate] for rate in sorted(points)],
        accuracy=None if run.simulation is None else run.simulation.accuracy,
    )


_RUN_NAME = re.compile(
    r"run-(?P<rate>\d+(\.\d+)?(e[+-]\d+)?)(-(?P<repeat>[2-9]|[1-9]\d{1,5}))?\.json\.gz", re.ASCII
)
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
    measure: Callable[[Try], Run]  # makes a run; called again for the same if that was invalid
    on_run: Callable[[Run, Point], None]  # called with each run, those of the store first

    def __post_init__(self) -> None:
        self._points: dict[float, Point] = {}
        self._latest: Run | None = None  # without records, as all runs that are kept in memory
        num_runs: Counter[float] = Counter()
        for rate, repeat, run in self.store.runs():
            # After a gap (an unreadable file), the runs of this rate are measured again.
            if repeat == num_runs[rate]:
                num_runs[rate] += 1
                self._add(Try(rate, repeat), run)

    def step(self) -> bool:
        """Make the next run, if there is one; return whether there are more to make.

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

    def result(self, requests_per_point: int) -> Capacity:
        """Return the outcome so far, after at least one run."""
        assert self._latest is not None
        return search_result(
            self.search, self.targets, self._points, self._latest, requests_per_point
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
        # Records are not kept in memory: their objects would slow down the client that measures.
        rate = made.rate
        runs = [*(self.store.load(rate, repeat) for repeat in range(made.repeat)), run]
        point = judge_rate(self.search, rate, runs, self.targets, run_name(rate, 0))
        self._points[rate] = point
        self._latest = replace(run, records=[])
        self.on_run(run, point)


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
        digest = hashlib.sha256(canonical).hexdigest()[:12]
        slug = re.sub(r"[^a-z0-9.]+", "-", name.lower())[:60].strip("-.")
        self.folder = root / "-".join(filter(None, (slug, digest)))
        self._configuration = msgspec.json.format(canonical)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Lock the folder for this process; the other methods need this context.

        Raises:
            BenchmarkError: the folder cannot be written, or another process writes to it.
        """
        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((self.folder / "lock").open("wb"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for partial in self.folder.glob(f"*{PARTIAL}"):
                    partial.unlink()
            except BlockingIOError:
                raise BenchmarkError(
                    f"another process is measuring the same into {self.folder}"
                ) from None
            except OSError as error:
                raise unwritable(self.folder, error) from None
            write(self.folder / "config.json", self._configuration)
            yield

    def runs(self) -> Iterator[tuple[float, int, Run]]:
        """Yield rate, number and content of each run, those of one rate in order.

        One at a time, as they are large. An unreadable file is renamed, with a warning.
        """
        matches = {path: _RUN_NAME.fullmatch(path.name) for path in self.folder.iterdir()}
        numbered = sorted(
            (float(match["rate"]), int(match["repeat"] or 1) - 1, path)
            for path, match in matches.items()
            if match is not None
        )
        for _, repeat, path in numbered:
            try:
                run = load_run(path)
                if run.rate is None or run_name(run.rate, repeat) != path.name:
                    raise BenchmarkError(f"{path} does not have the rate of its name")
            except BenchmarkError as error:
                aside = path.with_name(f"{path.name}.unreadable")
                try:
                    path.replace(aside)
                except OSError as problem:
                    raise unwritable(path, problem) from None
                logger.warning(
                    "%s; it is now %s, and its rate may be measured again", error, aside.name
                )
            else:
                yield run.rate, repeat, run

    def load(self, rate: float, repeat: int) -> Run:
        """Read a run; raise BenchmarkError where the file is missing or damaged."""
        return load_run(self.folder / run_name(rate, repeat))

    def keep(self, rate: float, repeat: int, run: Run) -> None:
        """Save a run, which is on disk when this returns; raise BenchmarkError where it cannot."""
        save(self.folder / run_name(rate, repeat), run)
