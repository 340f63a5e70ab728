"""Percentiles and their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import msgspec
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

PERCENTILES = (50, 90, 99)
_CONFIDENCE = 0.95
RESAMPLES = 400
_MAX_WORK = 4 * 10**7  # values times resamples; with more values there are fewer resamples
SEED = 0  # the same values have the same intervals
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


NO_VALUES = Distribution(count=0, **dict.fromkeys(Distribution.__struct_fields__[1:]))


def distribution(groups: Sequence[Sequence[float] | Array]) -> Distribution:
    """Return the statistics of values by request, in the order of arrival, with intervals."""
    groups = [group for group in groups if len(group)]
    if not groups:
        return NO_VALUES
    values = np.concatenate([np.asarray(group, np.float64) for group in groups])
    order = np.argsort(values, kind="stable")
    values = values[order]
    owners = np.repeat(np.arange(len(groups)), [len(group) for group in groups])[order]
    return distribution_of(
        len(values),
        float(values.mean()),
        _weighted(values, np.ones(len(values), np.int64)),
        float(values[-1]),
        _intervals(values, owners, len(groups)),
    )


def distribution_of(
    count: int,
    mean: float,
    percentiles: Array,
    largest: float,
    intervals: Sequence[Interval | None],
) -> Distribution:
    """Return a distribution with given `PERCENTILES` and their intervals."""
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
    bounded = bounded_percentiles(num_requests, len(values))
    if not any(bounded):
        return [None] * len(bounded)
    length = round(math.sqrt(num_requests))
    num_blocks = math.ceil(num_requests / length)
    rng = np.random.default_rng(SEED)
    found = []
    for _ in range(max(20, min(RESAMPLES, _MAX_WORK // len(values)))):
        starts = rng.integers(num_requests, size=(num_blocks, 1))
        resampled = ((starts + np.arange(length)) % num_requests).ravel()[:num_requests]
        weights = np.bincount(resampled, minlength=num_requests)
        found.append(_weighted(values, weights[owners]))
    return interval_bounds(np.array(found), num_blocks, bounded)


def bounded_percentiles(num_requests: int, num_values: int) -> list[bool]:
    """Return, for each percentile, whether there are enough values to bound it."""
    return [
        num_requests >= _LEAST_REQUESTS and num_values * (100 - percent) >= 100 * _LEAST_ABOVE
        for percent in PERCENTILES
    ]


def interval_bounds(
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
    ranks = np.ceil(np.array(PERCENTILES) / 100 * reached[-1])
    found: Array = values[np.searchsorted(reached, ranks)]
    return found
