"""Reduces data to the points that a figure needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sarathi.telemetry import RequestRecord

Array = npt.NDArray[np.float64]

TAIL = 3.3  # as a `depth`: beyond 99.9 %, where figures end
_KEPT = (50, 90, 99, 99.9)  # percentiles


def depth(share: npt.ArrayLike) -> Array:
    """Return how deep in the tail a share of all values is: 0.9 is 1, 0.99 is 2, 0.999 is 3."""
    found: Array = -np.log10(1 - np.asarray(share, np.float64))
    return found


def quantiles(values: npt.ArrayLike, most: int = 1000) -> tuple[Array, Array]:
    """Return some values, and the shares of all that do not exceed them, evenly by depth.

    P50, P90, P99 and P99.9 are exact. Of more than `most` values, those beyond `TAIL` are left out.
    The share of the greatest value is reduced by half a rank, since 1 has no depth.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    count = len(ordered)
    if not count:
        return ordered, ordered
    exact = np.ceil(np.array(_KEPT) / 100 * count)
    if count <= most:
        ranks = np.arange(1, count + 1, dtype=np.float64)
    else:
        even = 1 - 10 ** -np.linspace(0, TAIL, most - len(_KEPT))
        ranks = np.unique(np.concatenate([np.ceil(even * count), exact])).clip(1, count)
    found = ordered[ranks.astype(np.int64) - 1]
    shares = np.minimum(ranks, count - 0.5) / count
    return found, shares


def in_flight(records: Sequence[RequestRecord], most: int = 600) -> tuple[Array, Array]:
    """Return times, and the number of open requests from each time on.

    With more than `most` changes, each time stands for a span, with the largest number in it.
    """
    begins = np.array([record.arrival for record in records])
    ends = np.array([record.end for record in records])
    times = np.concatenate([begins, ends])
    order = np.argsort(times, kind="stable")  # of the same time: arrivals first
    times = times[order]
    counts = np.cumsum(np.repeat([1.0, -1.0], len(records))[order])
    if len(times) <= most:
        return times, counts
    parts = np.linspace(0, len(times), most + 1).astype(np.int64)[:-1]
    peaks: Array = np.maximum.reduceat(counts, parts)
    peaks[-1] = counts[-1]
    return times[parts], peaks


def spread(values: Sequence[float], most: int) -> list[int]:
    """Return indices of at most `most` values: evenly by rank, with the least and the greatest."""
    order = np.argsort(np.asarray(values, np.float64), kind="stable")
    if len(order) > most:
        order = order[np.linspace(0, len(order) - 1, most).round().astype(np.int64)]
    return [int(position) for position in order]
