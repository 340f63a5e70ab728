"""The figures of a run: latencies, throughput and goodput."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from sarathi.telemetry.percentiles import Distribution, distribution
from sarathi.telemetry.request_record import RequestRecord


class Targets(msgspec.Struct, frozen=True):
    """The latencies that a request must keep to count for goodput; None: any."""

    ttft: float | None = None  # seconds
    tbt: float | None = None  # seconds, for the longest gap

    def met(self, ttft: float | None, max_gap: float | None) -> bool:
        """Return whether a complete request keeps them."""
        if self.ttft is not None and (ttft is None or ttft > self.ttft):
            return False
        return self.tbt is None or max_gap is None or max_gap <= self.tbt


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of many requests. Times are seconds; latencies are those of complete requests.

    Throughput is over the whole duration, which includes the time until the last request ends.
    Rates of sent requests, and of those that met their targets, are over the time of sending.
    """

    requests: int
    completed: int
    failures: dict[str, int]  # by kind; empty if all requests are complete
    duration: float  # from the first arrival to the last end
    request_rate: float  # requests sent per second, over the time of sending
    completed_per_second: float
    output_tokens_per_second: float  # tokens of failed requests included
    total_tokens_per_second: float  # prompts of complete requests, and all output tokens
    ttft: Distribution
    tbt: Distribution
    max_gap: Distribution
    end_to_end: Distribution
    normalized: Distribution
    scheduling_delay: Distribution  # empty if the server does not report it
    goodput: float | None  # the part of `request_rate` that met the targets; None without targets
    attainment: float | None  # share of the requests that met the targets


class RunTotals:
    """The sums over requests that a `Summary` needs beside its distributions."""

    def __init__(self, targets: Targets | None) -> None:
        """Start without requests."""
        self.requests = 0
        self._targets = targets
        self._failures: Counter[str] = Counter()
        self._met = 0
        self._prompt_tokens = 0
        self._output_tokens = 0
        self._first, self._last, self._end = math.inf, -math.inf, -math.inf

    def add(self, record: RequestRecord, max_gap: float | None) -> None:
        """Add a request.

        Args:
            max_gap: that of the record.
        """
        self.requests += 1
        self._first = min(self._first, record.arrival)
        self._last = max(self._last, record.arrival)
        self._end = max(self._end, record.end)
        self._output_tokens += len(record.tokens)
        if record.failure is not None:
            self._failures[record.failure] += 1
            return
        self._prompt_tokens += record.prompt_tokens
        if self._targets is not None:
            self._met += self._targets.met(record.ttft, max_gap)

    def summary(self, send_time: float | None, **latencies: Distribution) -> Summary:
        """Return the summary of all requests.

        Args:
            send_time: seconds in which the requests were sent; None: until the last arrival.
            latencies: all distributions of a `Summary`.

        Raises:
            ValueError: there is no request.
        """
        if not self.requests:
            raise ValueError("there is no request to summarise")
        duration = self._end - self._first
        sending = self._last - self._first if send_time is None else send_time
        rate = self.requests / sending if sending > 0 else 0.0
        attainment = None if self._targets is None else self._met / self.requests
        completed = self.requests - self._failures.total()

        def per_second(amount: float) -> float:
            return amount / duration if duration > 0 else 0.0

        return Summary(
            requests=self.requests,
            completed=completed,
            failures=dict(sorted(self._failures.items())),
            duration=duration,
            request_rate=rate,
            completed_per_second=per_second(completed),
            output_tokens_per_second=per_second(self._output_tokens),
            total_tokens_per_second=per_second(self._prompt_tokens + self._output_tokens),
            goodput=None if attainment is None else attainment * rate,
            attainment=attainment,
            **latencies,
        )


def summarise(
    records: Sequence[RequestRecord], targets: Targets | None = None, send_time: float | None = None
) -> Summary:
    """Return the figures of a run.

    Args:
        records: in the order in which the requests arrived.
        send_time: seconds in which the requests were sent; by default until the last arrival.

    Raises:
        ValueError: there is no request.
    """
    totals = RunTotals(targets)
    for record in records:
        totals.add(record, record.max_gap)
    complete = [record for record in records if record.failure is None]

    def of(value: Callable[[RequestRecord], float | None]) -> Distribution:
        return distribution([[v] for v in map(value, complete) if v is not None])

    return totals.summary(
        send_time,
        ttft=of(lambda record: record.ttft),
        tbt=distribution([record.gaps for record in complete]),
        max_gap=of(lambda record: record.max_gap),
        end_to_end=of(lambda record: record.end_to_end),
        normalized=of(lambda record: record.normalized),
        scheduling_delay=of(lambda record: record.scheduling_delay),
    )
