"""Latencies of requests as the HTTP process measures them: every histogram, declared once.

What each latency means is defined in `sarathi.telemetry`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal

Outcome = Literal["stop", "length", "cancelled", "failed"]

# Seconds. Each is about 1.5 times the one before, which is how exact percentiles are. Usual targets
# such as 50, 100, 200 and 500 ms are bounds, so that the share of gaps within a target is exact.
_BOUNDS = (
    *(0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.5),
    *(10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)


class Histogram:
    """Counts of values between bounds. Memory and time do not grow with the values."""

    __slots__ = ("bounds", "counts", "description", "name", "sum")

    def __init__(self, bounds: Sequence[float], name: str = "", description: str = "") -> None:
        """Make an empty histogram; `ValueError` if the bounds do not ascend.

        Args:
            bounds: a value on a bound is counted there, one above the last beyond it.
            name: in GET /metrics, after "sarathi_".
        """
        if not all(low < high for low, high in pairwise((*bounds, math.inf))):
            raise ValueError(f"the bounds are {list(bounds)}, expected finite ones that ascend")
        self.bounds = tuple(bounds)
        self.name = name
        self.description = description
        self.counts = [0] * (len(bounds) + 1)  # above the bound before and up to its own
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[float, int]]:
        """Return each bound, infinity at last, and the number of values that do not exceed it."""
        return list(zip((*self.bounds, math.inf), accumulate(self.counts), strict=True))


class Latencies:
    """Of all requests since the start. Each of `n` choices is a request."""

    def __init__(self) -> None:
        def seconds(name: str, description: str) -> Histogram:
            return Histogram(_BOUNDS, f"{name}_seconds", description)

        self.time_to_first_token = seconds(
            "time_to_first_token", "From the arrival of a request to its first token"
        )
        self.time_between_tokens = seconds(
            "time_between_tokens", "Gap between two consecutive tokens of a request"
        )
        self.max_gap = seconds(  # of requests of two tokens or more
            "request_max_gap", "Longest gap between tokens of a finished request"
        )
        self.end_to_end = seconds(
            "end_to_end_latency", "From the arrival of a finished request to its last token"
        )
        self.scheduling_delay = seconds(
            "scheduling_delay",
            "From the arrival of a request to the iteration that first computes some of it",
        )
        self.requests: dict[Outcome, int] = {"stop": 0, "length": 0, "cancelled": 0, "failed": 0}

    @property
    def histograms(self) -> list[Histogram]:
        """All of them."""
        return [value for value in vars(self).values() if isinstance(value, Histogram)]

    @property
    def output_tokens(self) -> int:
        """Tokens of all requests: each is the first of its request or comes after a gap."""
        return self.time_to_first_token.count + self.time_between_tokens.count


class Stopwatch:
    """Measures one request. Runs once a token, on the cores that the model needs."""

    __slots__ = ("_last", "_latencies", "_longest", "arrival")

    def __init__(self, latencies: Latencies, arrival: float) -> None:
        self._latencies = latencies
        self.arrival = arrival
        self._last: float | None = None  # when the latest token came
        self._longest: float | None = None  # gap

    def token(self, now: float, scheduling_delay: float | None) -> None:
        """Count a token; the first one with its scheduling delay, in seconds."""
        last = self._last
        if last is None:
            self._latencies.time_to_first_token.observe(now - self.arrival)
            if scheduling_delay is not None:
                self._latencies.scheduling_delay.observe(scheduling_delay)
        else:
            gap = now - last
            if self._longest is None or gap > self._longest:
                self._longest = gap
            self._latencies.time_between_tokens.observe(gap)
        self._last = now

    def end(self, outcome: Outcome) -> None:
        """Count the end of the request: once, after its last token."""
        latencies = self._latencies
        latencies.requests[outcome] += 1
        if outcome in ("cancelled", "failed"):
            return
        if self._last is not None:
            latencies.end_to_end.observe(self._last - self.arrival)
        if self._longest is not None:
            latencies.max_gap.observe(self._longest)
