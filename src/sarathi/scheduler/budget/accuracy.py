"""How good predictions of iteration times have been lately."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

_WINDOW = 256  # iterations
_REFRESH = 32  # iterations between computing the figures
_FEW = 32  # iterations, below which lateness is presumed
_PRESUMED_LATE = 0.1


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of the latest iterations."""

    median: float = 0.0  # of |predicted - real| / real
    p90: float = 0.0  # likewise
    count: int = 0  # iterations that the two are of
    # P98 of real / predicted - 1, at least 0, of iterations that had prompt in them.
    late: float = _PRESUMED_LATE


class AccuracyWindow:
    """Collects predictions and what came of them."""

    def __init__(self) -> None:
        self._errors: deque[float] = deque(maxlen=_WINDOW)
        self._lateness: deque[float] = deque(maxlen=_WINDOW)
        self._accuracy = Accuracy()
        self._unseen = 0

    def add(self, predicted: float, seconds: float, *, with_prompt: bool) -> None:
        self._errors.append(abs(predicted - seconds) / seconds)
        if with_prompt:
            self._lateness.append(seconds / predicted - 1)
        self._unseen += 1

    @property
    def accuracy(self) -> Accuracy:
        """May be up to 32 iterations old."""
        if self._unseen >= min(_REFRESH, len(self._errors)) > 0:
            errors = sorted(self._errors)
            count = len(errors)
            self._accuracy = Accuracy(
                errors[count // 2], errors[count * 9 // 10], count, self._late()
            )
            self._unseen = 0
        return self._accuracy

    def _late(self) -> float:
        lateness = sorted(self._lateness)
        if len(lateness) < _FEW:
            return _PRESUMED_LATE
        return max(0.0, lateness[len(lateness) * 49 // 50])
