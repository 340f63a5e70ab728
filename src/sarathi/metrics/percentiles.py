"""Percentiles, and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_PERCENTILES = (50, 90, 99)
_CONFIDENCE = 95  # percent
_RESAMPLES = 200
_MAX_WORK = 4 * 10**7  # values times resamples; beyond, fewer resamples do


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """Many values in short. All are None where there is no value.

    The intervals are those of a bootstrap over requests, with 95 % confidence: gaps of one request
    share its fate, so that ten thousand gaps of a hundred requests are far fewer observations.
    They tell what other requests would have given on the same machine in the same state.
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


def distribution(groups: Sequence[Sequence[float]], seed: int = 0) -> Distribution:
    """
    Args:
        groups: values by request; those of different requests are taken as independent.
        seed: of the bootstrap.
    """
    sizes = [len(group) for group in groups]
    total = sum(sizes)
    if not total:
        return Distribution(count=0, **dict.fromkeys(Distribution.__struct_fields__[1:]))
    values = np.concatenate([np.asarray(group, np.float64) for group in groups])
    order = np.argsort(values, kind="stable")
    values = values[order]
    owners = np.repeat(np.arange(len(groups)), sizes)[order]
    points = _weighted(values, np.ones(total, np.int64))
    low, high = _intervals(values, owners, len(groups), np.random.default_rng(seed))
    p50, p90, p99 = points.tolist()
    intervals = list(zip(low.tolist(), high.tolist(), strict=True))
    return Distribution(
        count=total,
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
    values: Array, owners: npt.NDArray[np.int64], num_groups: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    resamples = max(20, min(_RESAMPLES, _MAX_WORK // len(values)))
    found = []
    for _ in range(resamples):
        drawn = np.bincount(rng.integers(num_groups, size=num_groups), minlength=num_groups)
        weights = drawn[owners]
        if weights.any():
            found.append(_weighted(values, weights))
    tail = (100 - _CONFIDENCE) / 2
    low, high = np.percentile(np.array(found), (tail, 100 - tail), axis=0)
    return low, high


def _weighted(values: Array, weights: npt.NDArray[np.int64]) -> Array:
    """Percentiles of sorted values, each as often as its weight says: the least value that so many
    percent of all do not exceed, hence always one that occurred."""
    reached = np.cumsum(weights)
    ranks = np.ceil(np.array(_PERCENTILES) / 100 * reached[-1])
    found: Array = values[np.searchsorted(reached, ranks)]
    return found
