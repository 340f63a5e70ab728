"""The summary of any number of requests, in constant memory."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sarathi.telemetry.percentiles import (
    NO_VALUES,
    PERCENTILES,
    RESAMPLES,
    SEED,
    Array,
    Distribution,
    bounded_percentiles,
    distribution_of,
    interval_bounds,
)
from sarathi.telemetry.request_record import RequestRecord
from sarathi.telemetry.summary import RunTotals, Summary, Targets

_LEAST = 1e-6  # seconds; shorter values count as 0
_MOST = 1e6
_WIDTH = math.log(1.002)  # of a bin, relative: a percentile is at most 0.1 % off
_NUM_BINS = math.ceil(math.log(_MOST / _LEAST) / _WIDTH) + 2
_BLOCKS = 64
_LATENCIES = ("ttft", "tbt", "max_gap", "end_to_end", "normalized", "scheduling_delay")


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
            return NO_VALUES
        used = np.flatnonzero(self._counts.any(axis=0))
        counts = self._counts[:num_blocks, used]
        values = np.minimum(
            np.where(used, _LEAST * np.exp((used - 0.5) * _WIDTH), 0), self._largest
        )
        percentiles = _percentiles(values, counts.sum(axis=0, keepdims=True))[0]
        bounded = bounded_percentiles(self._requests, self._values)
        intervals: list[tuple[float, float] | None] = [None] * len(bounded)
        if any(bounded):
            rng = np.random.default_rng(SEED)
            chances = np.full(num_blocks, 1 / num_blocks)
            resampled = rng.multinomial(num_blocks, chances, size=RESAMPLES)
            intervals = interval_bounds(
                _percentiles(values, resampled @ counts), num_blocks, bounded
            )
        mean = self._sum / self._values
        return distribution_of(self._values, mean, percentiles, self._largest, intervals)

    def _count(self, count: int, total: float, largest: float) -> None:
        self._requests += 1
        self._values += count
        self._sum += total
        if largest > self._largest:
            self._largest = largest


class StreamingSummary:
    """Summarises records one by one without keeping them; otherwise like `summarise`."""

    def __init__(self, targets: Targets | None = None) -> None:
        """Start without requests."""
        self._totals = RunTotals(targets)
        self._block_length = 1  # requests
        self._latest = -1  # index
        self._latencies = {name: StreamingDistribution() for name in _LATENCIES}

    def add(self, index: int, record: RequestRecord) -> None:
        """Add a request.

        Args:
            index: of the request in the order of arrival, from 0; records may come in any order.
        """
        self._latest = max(self._latest, index)
        while index >= _BLOCKS * self._block_length:
            self._block_length *= 2
            for distribution in self._latencies.values():
                distribution.merge_blocks()
        gaps = np.diff(np.asarray(record.tokens))
        max_gap = float(gaps.max()) if len(gaps) else None
        self._totals.add(record, max_gap)
        if record.failure is not None:
            return
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
        """Return the summary so far.

        Args:
            send_time: seconds in which the requests were sent; by default until the last arrival.

        Raises:
            ValueError: there was no request.
        """
        num_blocks = self._latest // self._block_length + 1
        return self._totals.summary(
            send_time,
            **{name: values.result(num_blocks) for name, values in self._latencies.items()},
        )


def _percentiles(values: Array, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return percentiles of each row of counts: the least value that so many do not exceed."""
    reached = np.cumsum(counts, axis=1)
    found = []
    for percent in PERCENTILES:
        ranks = np.ceil(percent / 100 * reached[:, -1:])
        found.append(values[np.argmax(reached >= ranks, axis=1)])
    return np.stack(found, axis=1)
