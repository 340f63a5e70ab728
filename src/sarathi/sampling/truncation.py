"""top_k, top_p and min_p without sorting the vocabulary.

Each of the three keeps a prefix of the tokens in order of falling probability (ties by token id),
so all three come down to one number, how many tokens to keep. A floor that no kept token can lie
below picks a few candidates first; only their values are sorted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sarathi.sampling.uniforms import running_mass

NO_TOP_K = np.iinfo(np.int64).max
_GROUP = 64  # values per group maximum
_SLACK = 1e-3  # nats by which floors are lowered, far above float32 rounding


class TruncationLimits(NamedTuple):
    """Truncation of each row, [rows] each; top_p 1 and min_p 0 are off."""

    top_k: NDArray[np.int64]  # NO_TOP_K is off
    top_p: NDArray[np.float64]
    min_p: NDArray[np.float64]


class Candidates(NamedTuple):
    """The values at or above a floor, row after row, in column order inside a row."""

    columns: NDArray[np.int64]  # [total]
    values: NDArray[np.float32]  # [total]
    starts: NDArray[np.int64]  # [rows + 1]: row r has the elements starts[r] to starts[r + 1]

    def padded(self) -> NDArray[np.float32]:
        """[rows, longest]: the values negated, so that sorting puts the largest first; inf ends."""
        counts = np.diff(self.starts)
        table = np.full((len(counts), counts.max()), np.inf, np.float32)
        table[np.arange(table.shape[1]) < counts[:, None]] = -self.values
        return table


def select(values: NDArray[np.float32], floor: NDArray[np.float32]) -> Candidates:
    """The elements of `values` [rows, width] that are at least `floor` [rows]."""
    rows, width = values.shape
    flat = np.flatnonzero(values >= floor[:, None])
    starts = np.searchsorted(flat, np.arange(rows + 1) * width)
    columns = flat - np.repeat(np.arange(rows) * width, np.diff(starts))
    return Candidates(columns, values.reshape(-1)[flat], starts)


def top_k_floor(values: NDArray[np.float32], k: NDArray[np.int64]) -> NDArray[np.float32]:
    """A bound at or below each row's k-th largest value (k at least 1), close to it.

    With the columns dealt out to groups, the k-th largest of the group maxima has at least k
    values at or above it, and hardly more where k is small beside the number of groups. For
    larger k the value itself is found by partition. For a k beyond the width it is -inf.
    """
    rows, width = values.shape
    groups = width // _GROUP
    floor = np.full(rows, -np.inf, np.float32)
    near = k <= groups // 4
    if near.any():
        dealt = values[:, : groups * _GROUP].reshape(rows, _GROUP, groups)
        maxima = np.sort(dealt.max(axis=1), axis=1)
        floor[near] = maxima[near, groups - k[near]]
    for row in np.flatnonzero(~near & (k < width)).tolist():
        place = width - int(k[row])
        floor[row] = np.partition(values[row], place)[place]
    return floor


def nucleus_floor(
    weights: NDArray[np.float32], vocab_size: int, limits: TruncationLimits
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """A floor for rows with top_p but no top_k, as a log-weight, and each row's whole mass.

    The tokens of at most `(1 - top_p) / vocab_size` of the mass hold at most `1 - top_p` of it
    together: the rest reaches top_p without them.

    Args:
        weights: [rows, width], padded with zeros; the largest of a row is 1.
    """
    total = running_mass(weights)[:, -1]
    spare = np.log((1.0 - limits.top_p) * total / vocab_size)
    return np.maximum(spare - _SLACK, _min_p_floor(limits)).astype(np.float32), total


def short_floor(log_weights: NDArray[np.float32], limits: TruncationLimits) -> NDArray[np.float32]:
    """A floor for rows with top_k, or with min_p alone: for these no total mass is needed.

    Where there is a top_k, min_p must not lower the number of candidates: top_p's mass is that
    of all k tokens.
    """
    has_k = limits.top_k != NO_TOP_K
    floor = _min_p_floor(limits).astype(np.float32)
    if has_k.any():
        floor = np.where(has_k, top_k_floor(log_weights, limits.top_k), floor)
    return floor


def draw_truncated(
    candidates: Candidates,
    limits: TruncationLimits,
    total: NDArray[np.float64] | None,
    uniform: NDArray[np.float64],
) -> NDArray[np.int64]:
    """One column per row, by inverting the distribution function in order of falling weight.

    Args:
        candidates: log-weights, the largest of each row 0.
        total: [rows], the mass that top_p is a share of; None for the mass after top_k.
        uniform: [rows], in [0, 1).
    """
    falling = candidates.padded()
    falling.sort(axis=1)
    weights = np.exp(-falling)
    mass = np.cumsum(weights, axis=1, dtype=np.float64)
    rows = np.arange(len(mass))
    kept = np.minimum(limits.top_k, np.diff(candidates.starts))
    if total is None:
        total = mass[rows, kept - 1]
    if (limits.top_p < 1).any():
        nucleus = _first(mass >= (limits.top_p * total)[:, None]) + 1
        kept = np.where(limits.top_p < 1, np.minimum(kept, nucleus), kept)
    if (limits.min_p > 0).any():
        kept = np.minimum(kept, _first(weights < limits.min_p[:, None]))
    drawn = uniform * mass[rows, kept - 1]
    return _column_at(candidates, falling, _first(mass > drawn[:, None]))


def _column_at(
    candidates: Candidates, falling: NDArray[np.float32], place: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The column of the value at `place` of each row's falling order, ties in column order."""
    value = falling[np.arange(len(place)), place]
    tie = place - _first(falling >= value[:, None])
    equal = candidates.values == np.repeat(-value, np.diff(candidates.starts))
    hits = np.flatnonzero(equal)
    first = np.searchsorted(hits, candidates.starts[:-1])
    return np.asarray(candidates.columns[hits[first + tie]], np.int64)


def _min_p_floor(limits: TruncationLimits) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(limits.min_p) - _SLACK)


def _first(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The first true column of each row, the width if there is none."""
    column = mask.argmax(axis=1)
    found = mask[np.arange(len(mask)), column]
    return np.asarray(np.where(found, column, mask.shape[1]), np.int64)
