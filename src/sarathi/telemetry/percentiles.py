"""Percentiles and their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import msgspec
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_PERCENTILES = (50, 90, 99)
_CONFIDENCE = 0.95
_RESAMPLES = 400
_MAX_WORK = 4 * 10**7  # values times resamples; with more values there are fewer resamples
_SEED = 0  # the same values have the same intervals
_LEAST_REQUESTS = 20
_LEAST_ABOVE = 3  # values expected above a percentile

Interval = tuple[float, float]


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """Statistics of many values. All are None if there is no value.

    The intervals have 95 % confidence: they bound what other requests would have given on the same
    machine in the same state. They come from a bootstrap over blocks of consecutive requests: gaps
    of one request depend on each other, and consecutive requests share iterations and the queue,
    so that ten thousand gaps of a hundred requests are far fewer observations.

    An interval is None if there are too few values to bound its percentile: fewer than 20 requests
    with values, or fewer than 3 values expected above the percentile. With one value per request,
    P50 needs 20 requests, P90 30 and P99 300.
    """

    count: int
    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    max: float | None
    p50_interval: tuple[float, float] | None
    p90_interval: tuple[float, float] | None
    p99_interval: tuple[float, float] | None


_NO_VALUES = Distribution(count=0, **dict.fromkeys(Distribution.__struct_fields__[1:]))


def distribution(groups: Sequence[Sequence[float] | Array]) -> Distribution:
    """Return the statistics of values by request, in the order of arrival, with intervals."""
    groups = [group for group in groups if len(group)]
    if not groups:
        return _NO_VALUES
    values = np.concatenate([np.asarray(group, np.float64) for group in groups])
    order = np.argsort(values, kind="stable")
    values = values[order]
    owners = np.repeat(np.arange(len(groups)), [len(group) for group in groups])[order]
    return _distribution_of(
        len(values),
        float(values.mean()),
        _weighted(values, np.ones(len(values), np.int64)),
        float(values[-1]),
        _intervals(values, owners, len(groups)),
    )


def _distribution_of(
    count: int,
    mean: float,
    percentiles: Array,
    largest: float,
    intervals: Sequence[Interval | None],
) -> Distribution:
    """Return a distribution with given `_PERCENTILES` and their intervals."""
    p50, p90, p99 = percentiles.tolist()
    return Distribution(
        count=count,
        mean=mean,
        p50=p50,
        p90=p90,
        p99=p99,
        max=largest,
        p50_interval=intervals[0],
        p90_interval=intervals[1],
        p99_interval=intervals[2],
    )


def _intervals(
    values: Array, owners: npt.NDArray[np.int64], num_requests: int
) -> list[Interval | None]:
    """Bootstrap over blocks of consecutive requests; the first follows the last.

    H. R. Künsch, "The jackknife and the bootstrap for general stationary observations", Annals of
    Statistics 17 (1989); the circular form is by Politis and Romano (1992).
    """
    bounded = _bounded_percentiles(num_requests, len(values))
    if not any(bounded):
        return [None] * len(bounded)
    length = round(math.sqrt(num_requests))
    num_blocks = math.ceil(num_requests / length)
    rng = np.random.default_rng(_SEED)
    found = []
    for _ in range(max(20, min(_RESAMPLES, _MAX_WORK // len(values)))):
        starts = rng.integers(num_requests, size=(num_blocks, 1))
        resampled = ((starts + np.arange(length)) % num_requests).ravel()[:num_requests]
        weights = np.bincount(resampled, minlength=num_requests)
        found.append(_weighted(values, weights[owners]))
    return _interval_bounds(np.array(found), num_blocks, bounded)


def _bounded_percentiles(num_requests: int, num_values: int) -> list[bool]:
    """Return, for each percentile, whether there are enough values to bound it."""
    return [
        num_requests >= _LEAST_REQUESTS and num_values * (100 - percent) >= 100 * _LEAST_ABOVE
        for percent in _PERCENTILES
    ]


def _interval_bounds(
    found: Array, num_blocks: int, bounded: Sequence[bool]
) -> list[Interval | None]:
    """Return the intervals of the percentiles that are bounded.

    Args:
        found: the percentiles of each resample, one resample a row.
        num_blocks: blocks of each resample.
    """
    tail = 100 * tail_share(num_blocks)
    both = np.percentile(found, (tail, 100 - tail), axis=0).T.tolist()
    return [
        (low, high) if enough else None for (low, high), enough in zip(both, bounded, strict=True)
    ]


def tail_share(num_blocks: int) -> float:
    """Return the share of the resamples to leave out at either end.

    It is less than (1 - confidence) / 2, because a bootstrap over few blocks underestimates the
    variance: it corrects for Student's t and for a variance divided by n - 1. T. C. Hesterberg,
    "What teachers should know about the bootstrap", The American Statistician 69 (2015), section
    5.3.
    """
    normal = NormalDist()
    z, free = normal.inv_cdf((1 + _CONFIDENCE) / 2), num_blocks - 1
    # The quantile of Student's t, to two terms of its expansion in 1 / free.
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return normal.cdf(-t * math.sqrt(num_blocks / free))


def _weighted(values: Array, weights: npt.NDArray[np.int64]) -> Array:
    """Return percentiles of sorted values with weights.

    Each is the least value that so many percent do not exceed, hence one of the values.
    """
    reached = np.cumsum(weights)
    ranks = np.ceil(np.array(_PERCENTILES) / 100 * reached[-1])
    found: Array = values[np.searchsorted(reached, ranks)]
    return found


class ExactDistribution:
    """Keeps all values."""

    def __init__(self) -> None:
        self._groups: list[Sequence[float] | Array] = []  # the values of each request

    def add(self, block: int, value: float) -> None:
        self._groups.append([value])

    def add_all(self, block: int, values: Array) -> None:
        self._groups.append(values)

    def merge_blocks(self) -> None:
        pass

    def result(self, num_blocks: int) -> Distribution:
        return distribution(self._groups)


_LEAST = 1e-6  # seconds; shorter values count as 0
_MOST = 1e6
_WIDTH = math.log(1.002)  # of a bin, relative: a percentile is at most 0.1 % off
_NUM_BINS = math.ceil(math.log(_MOST / _LEAST) / _WIDTH) + 2
NUM_BLOCKS = 64  # of consecutive requests


class StreamingDistribution:
    """Counts values in bins 0.2 % wide, separately for up to 64 blocks of requests.

    Blocks are consecutive in the order of arrival, and intervals come from a bootstrap over them,
    as in `distribution`. As more requests come, adjacent blocks are merged.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((NUM_BLOCKS, _NUM_BINS), np.int64)
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
        self._counts[: NUM_BLOCKS // 2] = self._counts[::2] + self._counts[1::2]
        self._counts[NUM_BLOCKS // 2 :] = 0

    def result(self, num_blocks: int) -> Distribution:
        """Return the statistics so far; the first `num_blocks` blocks have requests."""
        if not self._values:
            return _NO_VALUES
        used = np.flatnonzero(self._counts.any(axis=0))
        counts = self._counts[:num_blocks, used]
        values = np.minimum(
            np.where(used, _LEAST * np.exp((used - 0.5) * _WIDTH), 0), self._largest
        )
        percentiles = _weighted(values, counts.sum(axis=0))
        bounded = _bounded_percentiles(self._requests, self._values)
        intervals: list[Interval | None] = [None] * len(bounded)
        if any(bounded):
            rng = np.random.default_rng(_SEED)
            chances = np.full(num_blocks, 1 / num_blocks)
            resampled = rng.multinomial(num_blocks, chances, size=_RESAMPLES)
            found = np.array([_weighted(values, weights) for weights in resampled @ counts])
            intervals = _interval_bounds(found, num_blocks, bounded)
        mean = self._sum / self._values
        return _distribution_of(self._values, mean, percentiles, self._largest, intervals)

    def _count(self, count: int, total: float, largest: float) -> None:
        self._requests += 1
        self._values += count
        self._sum += total
        if largest > self._largest:
            self._largest = largest
