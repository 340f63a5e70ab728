"""The summary of any number of requests, in constant memory."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import numpy.typing as npt

from sarathi.telemetry.percentiles import (
    PERCENTILES,
    RESAMPLES,
    SEED,
    Array,
    Distribution,
    bounded_percentiles,
    interval_bounds,
)
from sarathi.telemetry.request_record import RequestRecord
from sarathi.telemetry.summary import Summary, Targets

_LEAST = 1e-6  # seconds; shorter values count as 0
_MOST = 1e6
_WIDTH = math.log(1.002)  # of a bin, relative: a percentile is at most 0.1 % off
_NUM_BINS = math.ceil(math.log(_MOST / _LEAST) / _WIDTH) + 2
_BLOCKS = 64


class StreamingDistribution:
    """Counts values in bins 0.2 % wide, separately for up to 64 blocks of requests.

    Blocks are consecutive in the order of arrival, and intervals come from a bootstrap over them,
    as in `distribution`. As more requests come, adjacent blocks are merged.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((_BLOCKS, _NUM_BINS), np.int64)
        self._requests = 0  # that had values
        self._values = 0
        self._sum = 0.0
        self._largest = 0.0

    def add(self, block: int, value: float) -> None:
        """Add the only value of a request."""
        at = math.ceil(math.log(value / _LEAST) / _WIDTH) if value > _LEAST else 0
        self._counts[block, min(at, _NUM_BINS - 1)] += 1
        self._count(1, value, value)

    def add_all(self, block: int, values: Array) -> None:
        """Add the values of a request, at least one."""
        bins = np.ceil(np.log(np.maximum(values, _LEAST) / _LEAST) / _WIDTH).astype(np.int64)
        np.add.at(self._counts[block], np.minimum(bins, _NUM_BINS - 1), 1)
        self._count(len(values), float(values.sum()), float(values.max()))

    def merge_blocks(self) -> None:
        """Merge blocks in pairs, so that the second half of them is free."""
        self._counts[: _BLOCKS // 2] = self._counts[::2] + self._counts[1::2]
        self._counts[_BLOCKS // 2 :] = 0

    def result(self, num_blocks: int) -> Distribution:
        """Return the statistics so far.

        Args:
            num_blocks: blocks that have requests, the first ones.
        """
        if not self._values:
            return Distribution(count=0, **dict.fromkeys(Distribution.__struct_fields__[1:]))
        used = np.flatnonzero(self._counts.any(axis=0))
        counts = self._counts[:num_blocks, used]
        values = np.minimum(
            np.where(used, _LEAST * np.exp((used - 0.5) * _WIDTH), 0), self._largest
        )
        p50, p90, p99 = _percentiles(values, counts.sum(axis=0, keepdims=True))[0].tolist()
        bounded = bounded_percentiles(self._requests, self._values)
        intervals: list[tuple[float, float] | None] = [None] * len(bounded)
        if any(bounded):
            rng = np.random.default_rng(SEED)
            chances = np.full(num_blocks, 1 / num_blocks)
            resampled = rng.multinomial(num_blocks, chances, size=RESAMPLES)
            intervals = interval_bounds(
                _percentiles(values, resampled @ counts), num_blocks, bounded
            )
        return Distribution(
            count=self._values,
            mean=self._sum / self._values,
            p50=p50,
            p90=p90,
            p99=p99,
            max=self._largest,
            p50_interval=intervals[0],
            p90_interval=intervals[1],
            p99_interval=intervals[2],
        )

    def _count(self, count: int, total: float, largest: float) -> None:
        self._requests += 1
        self._values += count
        self._sum += total
        if largest > self._largest:
            self._largest = largest


class StreamingSummary:
    """Summarises records one by one without keeping them; otherwise like `summarise`."""

    def __init__(self, targets: Targets | None = None) -> None:
        self._targets = targets
        self._block_length = 1  # requests
        self._latest = -1  # index
        self._ttft = StreamingDistribution()
        self._tbt = StreamingDistribution()
        self._max_gap = StreamingDistribution()
        self._end_to_end = StreamingDistribution()
        self._normalized = StreamingDistribution()
        self._delay = StreamingDistribution()
        self._all = (
            self._ttft,
            self._tbt,
            self._max_gap,
            self._end_to_end,
            self._normalized,
            self._delay,
        )
        self._failures: Counter[str] = Counter()
        self._requests = 0
        self._met = 0
        self._prompt_tokens = 0
        self._output_tokens = 0
        self._first, self._last, self._end = math.inf, -math.inf, -math.inf

    def add(self, index: int, record: RequestRecord) -> None:
        """Add a request.

        Args:
            index: of the request in the order of arrival, from 0; records may come in any order.
        """
        self._latest = max(self._latest, index)
        while index >= _BLOCKS * self._block_length:
            self._block_length *= 2
            for distribution in self._all:
                distribution.merge_blocks()
        block = index // self._block_length
        arrival, tokens = record.arrival, record.tokens
        self._requests += 1
        self._first = min(self._first, arrival)
        self._last = max(self._last, arrival)
        self._end = max(self._end, record.end)
        self._output_tokens += len(tokens)
        if record.failure is not None:
            self._failures[record.failure] += 1
            return
        self._prompt_tokens += record.prompt_tokens
        ttft = max_gap = None
        if tokens:
            ttft, whole = tokens[0] - arrival, tokens[-1] - arrival
            self._ttft.add(block, ttft)
            self._end_to_end.add(block, whole)
            self._normalized.add(block, whole / len(tokens))
        if len(tokens) > 1:
            gaps = np.diff(np.asarray(tokens))
            max_gap = float(gaps.max())
            self._tbt.add_all(block, gaps)
            self._max_gap.add(block, max_gap)
        if record.scheduling_delay is not None:
            self._delay.add(block, record.scheduling_delay)
        if self._targets is not None:
            self._met += self._targets.met(ttft, max_gap)

    def result(self, send_time: float | None = None) -> Summary:
        """Return the summary so far.

        Args:
            send_time: seconds in which the requests were sent; by default until the last arrival.

        Raises:
            ValueError: there was no request.
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
            ttft=self._ttft.result(num_blocks),
            tbt=self._tbt.result(num_blocks),
            max_gap=self._max_gap.result(num_blocks),
            end_to_end=self._end_to_end.result(num_blocks),
            normalized=self._normalized.result(num_blocks),
            scheduling_delay=self._delay.result(num_blocks),
            goodput=None if attainment is None else attainment * rate,
            attainment=attainment,
        )


def _percentiles(values: Array, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return percentiles of each row of counts: the least value that so many do not exceed."""
    reached = np.cumsum(counts, axis=1)
    found = []
    for percent in PERCENTILES:
        ranks = np.ceil(percent / 100 * reached[:, -1:])
        found.append(values[np.argmax(reached >= ranks, axis=1)])
    return np.stack(found, axis=1)
