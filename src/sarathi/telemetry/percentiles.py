"""Percentiles, and how sure they are."""

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
_MAX_WORK = 4 * 10**7  # values times resamples; beyond, fewer resamples do
SEED = 0  # the same values have the same intervals
_LEAST_REQUESTS = 20
_LEAST_ABOVE = 3  # values expected above a percentile

Interval = tuple[float, float]


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """Many values in short. All are None where there is no value.

    The intervals have 95 % confidence, and tell what other requests would have given on the same
    machine in the same state. They are those of a bootstrap over blocks of requests that came one
    after the other: gaps of one request share its fate, and neighbours the same iterations and the
    same queue, so that ten thousand gaps of a hundred requests are far fewer observations.

    An interval is None where too little was seen to bound its percentile: with fewer than 20
    requests that have values, or where fewer than 3 values are expected above the percentile. Of
    one value per request, P50 needs 20 requests, P90 30 and P99 300.
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


def distribution(groups: Sequence[Sequence[float]]) -> Distribution:
    """
    Args:
        groups: values by request, in the order in which the requests arrived.
    """
    groups = [group for group in groups if len(group)]
    if not groups:
        return Distribution(count=0, **dict.fromkeys(Distribution.__struct_fields__[1:]))
    values = np.concatenate([np.asarray(group, np.float64) for group in groups])
    order = np.argsort(values, kind="stable")
    values = values[order]
    owners = np.repeat(np.arange(len(groups)), [len(group) for group in groups])[order]
    p50, p90, p99 = _weighted(values, np.ones(len(values), np.int64)).tolist()
    intervals = _intervals(values, owners, len(groups))
    return Distribution(
        count=len(values),
        mean=float(values.mean()),
        p50=p50,
        p90=p90,
        p99=p99,
        max=float(values[-1]),
        p50_interval=intervals[0],
        p90_interval=intervals[1],
        p99_interval=intervals[2],
    )


def _intervals(
    values: Array, owners: npt.NDArray[np.int64], num_requests: int
) -> list[Interval | None]:
    """A bootstrap over blocks of neighbours, the last of which are next to the first.

    H. R. Künsch, "The jackknife and the bootstrap for general stationary observations", Annals of
    Statistics 17 (1989); the circle is that of Politis and Romano (1992).
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
        drawn = ((starts + np.arange(length)) % num_requests).ravel()[:num_requests]
        weights = np.bincount(drawn, minlength=num_requests)
        found.append(_weighted(values, weights[owners]))
    return ends(np.array(found), num_blocks, bounded)


def bounded_percentiles(num_requests: int, num_values: int) -> list[bool]:
    """Of which percentiles enough was seen to bound them."""
    return [
        num_requests >= _LEAST_REQUESTS and num_values * (100 - percent) >= 100 * _LEAST_ABOVE
        for percent in PERCENTILES
    ]


def ends(found: Array, num_blocks: int, bounded: Sequence[bool]) -> list[Interval | None]:
    """Intervals of the percentiles.

    Args:
        found: the percentiles of each resample, one resample a row.
        num_blocks: that were drawn for each.
        bounded: which percentiles to give an interval.
    """
    tail = 100 * tail_share(num_blocks)
    both = np.percentile(found, (tail, 100 - tail), axis=0).T.tolist()
    return [
        (low, high) if enough else None for (low, high), enough in zip(both, bounded, strict=True)
    ]


def tail_share(num_blocks: int) -> float:
    """What share of the resamples to leave out at either end.

    Less than half of what lies beyond the confidence: few blocks vary less than they should, as
    Student's t and a variance divided by n - 1 allow for. T. C. Hesterberg, "What teachers should
    know about the bootstrap", The American Statistician 69 (2015), section 5.3.
    """
    normal = NormalDist()
    z, free = normal.inv_cdf((1 + _CONFIDENCE) / 2), num_blocks - 1
    # The quantile of Student's t, to two terms of its expansion in 1 / free.
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return normal.cdf(-t * math.sqrt(num_blocks / free))


def _weighted(values: Array, weights: npt.NDArray[np.int64]) -> Array:
    """Percentiles of sorted values, each as often as its weight says: the least value that so many
    percent of all do not exceed, hence always one that occurred."""
    reached = np.cumsum(weights)
    ranks = np.ceil(np.array(PERCENTILES) / 100 * reached[-1])
    found: Array = values[np.searchsorted(reached, ranks)]
    return found
