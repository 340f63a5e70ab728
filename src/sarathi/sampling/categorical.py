"""Sample from the softmax of rows of logits: whole, or truncated by top_k, top_p and min_p.

A random token depends on nothing but a row's weights, the request's seed and how many tokens it
has: every reduction here runs along one row in an order that the other rows cannot change, so a
row's result is the same bits in any batch.

Truncation does not sort the vocabulary. Each of top_k, top_p and min_p keeps a prefix of the tokens
in order of falling probability (ties by token id), so all three come down to one number, how many
tokens to keep. A floor that no kept token can lie below selects a few candidates first; only their
values are sorted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK = 256  # columns per partial sum; widths of weight matrices are multiples of it
NO_TOP_K = np.iinfo(np.int64).max
_GROUP = 64  # values per group maximum
_SLACK = 1e-3  # nats by which floors are lowered, far above float32 rounding

_MASK = (1 << 64) - 1
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_BELOW_ONE = 1.0 - 2.0**-53


def stream_key(seed: int) -> int:
    """Return the key of a seed's stream of uniforms; consecutive seeds get unrelated keys."""
    return int(_mix(np.array([seed & _MASK], np.uint64) + _GAMMA)[0])


def uniforms(keys: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return element `position` of each key's stream, in [0, 1), without computing those before it.

    SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014)
    seen as a function of a counter.
    """
    bits = _mix(keys + (positions.astype(np.uint64) + np.uint64(1)) * _GAMMA)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def running_mass(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Compute the mass up to the end of each block of columns, [rows, width / BLOCK].

    The last column is a row's total. Blocks are summed in float32, which is exact enough for 256
    addends and needs no float64 copy of the matrix.
    """
    rows, width = weights.shape
    # einsum sums a contiguous axis three times as fast as add.reduce does for rows this short.
    sums: NDArray[np.float32] = np.einsum("rbc->rb", weights.reshape(rows, width // BLOCK, BLOCK))
    return np.cumsum(sums.astype(np.float64), axis=1)


def sample_whole(weights: NDArray[np.float32], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """Sample one column per row by inverting the distribution function, in column order.

    First the block that holds the target mass is found, then the column in it, so that no
    cumulative sum runs over the whole row.

    Args:
        weights: [rows, width], at least 0, width a multiple of BLOCK, a positive sum per row.
        uniform: [rows], in [0, 1).
    """
    rows = np.arange(len(weights))
    edges = running_mass(weights)
    target = uniform * edges[:, -1]
    block = (edges <= target[:, None]).sum(axis=1)
    low = np.where(block > 0, edges[rows, block - 1], 0.0)
    # The block's own float64 sum differs from its float32 sum in the last digits: carry over the
    # fraction, not the mass, so that the sample can never fall behind the block's end.
    fraction = np.minimum((target - low) / (edges[rows, block] - low), _BELOW_ONE)
    inside = weights.reshape(len(weights), -1, BLOCK)[rows, block]
    fine = np.cumsum(inside.astype(np.float64), axis=1)
    column = (fine <= (fraction * fine[:, -1])[:, None]).sum(axis=1)
    return np.asarray(block * BLOCK + column, np.int64)


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
        """Return the values negated, so that sorting puts the largest first, padded with inf.

        The shape is [rows, longest].
        """
        counts = np.diff(self.starts)
        table = np.full((len(counts), counts.max()), np.inf, np.float32)
        table[np.arange(table.shape[1]) < counts[:, None]] = -self.values
        return table


def select(values: NDArray[np.float32], floor: NDArray[np.float32]) -> Candidates:
    """Select the elements of `values`, [rows, width], that are at least `floor`, [rows]."""
    rows, width = values.shape
    flat = np.flatnonzero(values >= floor[:, None])
    starts = np.searchsorted(flat, np.arange(rows + 1) * width)
    columns = flat - np.repeat(np.arange(rows) * width, np.diff(starts))
    return Candidates(columns, values.reshape(-1)[flat], starts)


def top_k_floor(values: NDArray[np.float32], k: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return a bound at or below each row's k-th largest value (k at least 1), close to it.

    With the columns divided into groups, the k-th largest of the group maxima has at least k
    values at or above it, and hardly more where k is small against the number of groups. For
    larger k the value itself is found by partition. For a k beyond the width it is -inf.
    """
    rows, width = values.shape
    groups = width // _GROUP
    floor = np.full(rows, -np.inf, np.float32)
    near = k <= groups // 4
    if near.any():
        grouped = values[:, : groups * _GROUP].reshape(rows, _GROUP, groups)
        maxima = np.sort(grouped.max(axis=1), axis=1)
        floor[near] = maxima[near, groups - k[near]]
    for row in np.flatnonzero(~near & (k < width)).tolist():
        index = width - int(k[row])
        floor[row] = np.partition(values[row], index)[index]
    return floor


def nucleus_floor(
    weights: NDArray[np.float32], vocab_size: int, limits: TruncationLimits
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return a floor for rows with top_p but no top_k, as a log-weight, and each row's mass.

    The tokens of at most `(1 - top_p) / vocab_size` of the mass hold at most `1 - top_p` of it
    together: the others reach top_p without them.

    Args:
        weights: [rows, width], padded with zeros; the largest of a row is 1.
    """
    total = running_mass(weights)[:, -1]
    spare = np.log((1.0 - limits.top_p) * total / vocab_size)
    return np.maximum(spare - _SLACK, _min_p_floor(limits)).astype(np.float32), total


def short_floor(log_weights: NDArray[np.float32], limits: TruncationLimits) -> NDArray[np.float32]:
    """Return a floor for rows with top_k, or with min_p alone, which need no total mass.

    Where there is a top_k, min_p must not lower the number of candidates: top_p's mass is that
    of all k tokens.
    """
    has_k = limits.top_k != NO_TOP_K
    floor = _min_p_floor(limits).astype(np.float32)
    if has_k.any():
        floor = np.where(has_k, top_k_floor(log_weights, limits.top_k), floor)
    return floor


def sample_truncated(
    candidates: Candidates,
    limits: TruncationLimits,
    total: NDArray[np.float64] | None,
    uniform: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Sample one column per row, by inverting the distribution in order of falling weight.

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
    target = uniform * mass[rows, kept - 1]
    return _column_at(candidates, falling, _first(mass > target[:, None]))


def _column_at(
    candidates: Candidates, falling: NDArray[np.float32], rank: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the column of the value at `rank` in each row's falling order, ties by column."""
    value = falling[np.arange(len(rank)), rank]
    tie = rank - _first(falling >= value[:, None])
    equal = candidates.values == np.repeat(-value, np.diff(candidates.starts))
    hits = np.flatnonzero(equal)
    first = np.searchsorted(hits, candidates.starts[:-1])
    return np.asarray(candidates.columns[hits[first + tie]], np.int64)


def _min_p_floor(limits: TruncationLimits) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(limits.min_p) - _SLACK)


def _first(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the first true column of each row, or the width."""
    column = mask.argmax(axis=1)
    found = mask[np.arange(len(mask)), column]
    return np.asarray(np.where(found, column, mask.shape[1]), np.int64)


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply SplitMix64's finaliser: a bijection of 64-bit words; products wrap."""
    bits = (bits ^ (bits >> np.uint64(30))) * _MIX_1
    bits = (bits ^ (bits >> np.uint64(27))) * _MIX_2
    return bits ^ (bits >> np.uint64(31))
