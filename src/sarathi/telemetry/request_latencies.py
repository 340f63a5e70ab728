"""How long requests took, as the caller of an engine saw it.

What each latency means is defined in `sarathi.telemetry`.
"""

from __future__ import annotations

from typing import Literal

from sarathi.telemetry.histogram import Histogram

Outcome = Literal["stop", "length", "cancelled", "failed"]

# Seconds. Half as much again from one to the next, about: a percentile is known that closely.
# Targets that people set, such as 50, 100, 200 and 500 ms, are bounds, so that the share of gaps
# within a target is exact.
_BOUNDS = (
    *(0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.5),
    *(10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)


class Latencies:
    """Of all requests since the start. One output is one request: a caller that wants n has n."""

    def __init__(self) -> None:
        self.time_to_first_token = Histogram(_BOUNDS)
        self.time_between_tokens = Histogram(_BOUNDS)
        self.scheduling_delay = Histogram(_BOUNDS)
        self.max_gap = Histogram(_BOUNDS)  # of finished requests of two tokens or more
        self.end_to_end = Histogram(_BOUNDS)  # of finished requests
        self.requests: dict[Outcome, int] = {"stop": 0, "length": 0, "cancelled": 0, "failed": 0}

    @property
    def output_tokens(self) -> int:
        """A token is the first of its request or comes after a gap."""
        return self.time_to_first_token.count + self.time_between_tokens.count


class Stopwatch:
    """Takes the times of one request. Runs once a token on the cores that the model needs."""

    __slots__ = ("_last", "_latencies", "_longest", "arrival")

    def __init__(self, latencies: Latencies, arrival: float) -> None:
        self._latencies = latencies
        self.arrival = arrival
        self._last: float | None = None  # when the latest token came
        self._longest: float | None = None  # gap

    def token(self, now: float, scheduling_delay: float | None) -> None:
        """Take in a token.

        Args:
            scheduling_delay: seconds; with the first token only.
        """
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
        """To be called once, after the last token."""
        latencies = self._latencies
        latencies.requests[outcome] += 1
        if outcome in ("cancelled", "failed"):
            return
        if self._last is not None:
            latencies.end_to_end.observe(self._last - self.arrival)
        if self._longest is not None:
            latencies.max_gap.observe(self._longest)
