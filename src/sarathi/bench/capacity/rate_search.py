"""Bisection over request rates, with verdicts that may be uncertain."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sarathi.errors import BenchmarkError

_FINEST, _COARSEST = 0.01, 1.0  # resolutions
_SLOWEST, _FASTEST = 1e-6, 1e6  # requests per second, to begin with
_MAX_DOUBLINGS = 12  # of the first rate
_MAX_REPEATS = 1  # of a rate whose verdict is uncertain


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
        self._resolution = resolution
        self._start = _rounded(start)
        self._lowest = start / 2**max_halvings
        self._highest = start * 2**_MAX_DOUBLINGS
        self._rated: dict[float, _Rated] = {}

    def next(self) -> Try | None:
        """Return the next run, the same until a verdict is recorded; None when done."""
        rate = self._untried()
        return self._doubtful() if rate is None else Try(rate)

    def record(self, rate: float, met: bool, certain: bool) -> None:
        """Record the verdict of a run, at the requested rate or another.

        Args:
            met: the verdict on all runs at this rate together.
            certain: other requests would give the same verdict.
        """
        before = self._rated.get(rate)
        self._rated[rate] = _Rated(met, certain, 1 if before is None else before.runs + 1)

    @property
    def capacity(self) -> float | None:
        """The highest rate believed to meet the target; None: no tried rate does."""
        return self._split()[0]

    @property
    def low(self) -> float | None:
        """The highest rate that certainly met, below every certain miss."""
        high = self.high
        found = [
            rate
            for rate, rated in self._rated.items()
            if rated.met and rated.certain and (high is None or rate < high)
        ]
        return max(found, default=None)

    @property
    def high(self) -> float | None:
        """The lowest rate that certainly missed."""
        missed = [r for r, rated in self._rated.items() if rated.certain and not rated.met]
        return min(missed, default=None)

    def _split(self) -> tuple[float | None, float | None]:
        """Return adjacent rates, one believed to meet the target and one to miss it."""
        low, high = self.low, self.high
        open_rates = sorted(
            rate
            for rate in self._rated
            if (low is None or rate > low) and (high is None or rate < high)
        )
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
            above = _rounded(min(self._step(met) * met, self._highest))
            return above if above > met else None
        if met is None:
            below = _rounded(max(missed / self._step(missed), self._lowest))
            return below if below < missed else None
        if missed / met - 1 <= self._resolution:
            return None
        middle = _rounded(math.sqrt(met) * math.sqrt(missed))
        return middle if met < middle < missed else None

    def _step(self, rate: float) -> float:
        """Return the factor to the next rate: an uncertain verdict means that the end is near."""
        return 2.0 if self._rated[rate].certain else math.sqrt(2)

    def _doubtful(self) -> Try | None:
        for rate in self._split():
            if rate is not None:
                rated = self._rated[rate]
                if not rated.certain and rated.runs <= _MAX_REPEATS:
                    return Try(rate, rated.runs)
        return None


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
