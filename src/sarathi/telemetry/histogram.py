"""Values counted by size, as Prometheus wants them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise


class Histogram:
    """How many values were at most each of some bounds. Memory and time do not grow with them."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """
        Args:
            bounds: ascending; a value on a bound is counted there, one above the last beyond it.

        Raises:
            ValueError: they do not ascend.
        """
        if not all(low < high for low, high in pairwise((*bounds, math.inf))):
            raise ValueError(f"the bounds are {list(bounds)}, expected finite ones that ascend")
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)  # above the bound before and up to its own
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> list[tuple[float, int]]:
        """Each bound, infinity at last, with the number of values that do not exceed it."""
        return list(zip((*self.bounds, math.inf), accumulate(self.counts), strict=True))
