"""The figures of a run (latencies, throughput, goodput) from the times of its requests.

`StreamingSummary` computes them for any number of requests in constant memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import numpy as np

from sarathi.telemetry.percentiles import (
    NUM_BLOCKS,
    Distribution,
    ExactDistribution,
    StreamingDistribution,
)


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request as its client saw it. Times are seconds since the run began.

    `tokens` holds the time of every output token in order. Tokens that came together have the same
    time, and hence gaps of zero between them.
    """

    arrival: float  # when it was sent
    prompt_tokens: int
    output_tokens: int  # asked for
    tokens: list[float] = []  # when each came
    end: float  # when it was complete, or failed
    scheduling_delay: float | None = None  # as reported by the server; None if it does not
    cached_tokens: int = 0  # of the prompt, found in the server's prefix cache
    failure: str | None = None  # its kind; None for a complete answer
    detail: str | None = None  # of a failure: the message of the server or the connection
    estimated: bool = False  # the server did not report the number of tokens of each event
    lag: float = 0.0  # how much later than planned it was sent

    @property
    def ttft(self) -> float | None:
        """Seconds from arrival to the first token; None without tokens."""
        return self.tokens[0] - self.arrival if self.tokens else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between consecutive tokens; one less than there are tokens."""
        return [after - before for before, after in pairwise(self.tokens)]

    @property
    def max_gap(self) -> float | None:
        """The longest gap, in seconds; None with fewer than two tokens."""
        return max(self.gaps, default=None)

    @property
    def end_to_end(self) -> float | None:
        """Seconds from arrival to the last token; None without tokens."""
        return self.tokens[-1] - self.arrival if self.tokens else None

    @property
    def normalized(self) -> float | None:
        """End-to-end latency per output token, as Orca and vLLM report it."""
        return None if not self.tokens else (self.tokens[-1] - self.arrival) / len(self.tokens)


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


_LATENCIES = ("ttft", "tbt", "max_gap", "end_to_end", "normalized", "scheduling_delay")


class StreamingSummary:
    """Summarises records one by one, without keeping them."""

    def __init__(
        self,
        targets: Targets | None = None,
        distribution_type: type[StreamingDistribution | ExactDistribution] = StreamingDistribution,
    ) -> None:
        """Start without requests."""
        self._targets = targets
        self._latencies = {name: distribution_type() for name in _LATENCIES}
        self._block_length = 1  # requests
        self._latest = -1  # index
        self._requests = self._met = 0
        self._failures: Counter[str] = Counter()
        self._prompt_tokens = self._output_tokens = 0
        self._first, self._last, self._end = math.inf, -math.inf, -math.inf

    def add(self, index: int, record: RequestRecord) -> None:
        """Add a request by its index in the order of arrival; records may come in any order."""
        self._latest = max(self._latest, index)
        while index >= NUM_BLOCKS * self._block_length:
            self._block_length *= 2
            for latencies in self._latencies.values():
                latencies.merge_blocks()
        self._requests += 1
        self._first = min(self._first, record.arrival)
        self._last = max(self._last, record.arrival)
        self._end = max(self._end, record.end)
        self._output_tokens += len(record.tokens)
        if record.failure is not None:
            self._failures[record.failure] += 1
            return
        self._prompt_tokens += record.prompt_tokens
        gaps = np.diff(np.asarray(record.tokens))
        max_gap = float(gaps.max()) if len(gaps) else None
        if self._targets is not None:
            self._met += self._targets.met(record.ttft, max_gap)
        block = index // self._block_length
        if max_gap is not None:
            self._latencies["tbt"].add_all(block, gaps)
        for name, value in (
            ("ttft", record.ttft),
            ("max_gap", max_gap),
            ("end_to_end", record.end_to_end),
            ("normalized", record.normalized),
            ("scheduling_delay", record.scheduling_delay),
        ):
            if value is not None:
                self._latencies[name].add(block, value)

    def result(self, send_time: float | None = None) -> Summary:
        """Return the summary so far; `ValueError` if there was no request.

        The requests were sent in `send_time` seconds; None: until the last arrival.
        """
        if not self._requests:
            raise ValueError("there is no request to summarise")
        duration = self._end - self._first
        sending = self._last - self._first if send_time is None else send_time
        rate = self._requests / sending if sending > 0 else 0.0
        attainment = None if self._targets is None else self._met / self._requests
        completed = self._requests - self._failures.total()
        num_blocks = self._latest // self._block_length + 1

        def per_second(amount: float) -> float:
            return amount / duration if duration > 0 else 0.0

        return Summary(
            requests=self._requests,
            completed=completed,
            failures=dict(sorted(self._failures.items())),
            duration=duration,
            request_rate=rate,
            completed_per_second=per_second(completed),
            output_tokens_per_second=per_second(self._output_tokens),
            total_tokens_per_second=per_second(self._prompt_tokens + self._output_tokens),
            goodput=None if attainment is None else attainment * rate,
            attainment=attainment,
            **{name: values.result(num_blocks) for name, values in self._latencies.items()},
        )


def summarise(
    records: Sequence[RequestRecord], targets: Targets | None = None, send_time: float | None = None
) -> Summary:
    """Return the exact figures of requests in the order of arrival; see `StreamingSummary`."""
    summary = StreamingSummary(targets, ExactDistribution)
    for index, record in enumerate(records):
        summary.add(index, record)
    return summary.result(send_time)
