"""Random draws that depend on nothing but a request's seed and how many tokens it has.

Every reduction here runs along one row in an order that the other rows cannot change, so a row's
result is the same bits whatever shares its batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 256  # columns per partial sum; widths of weight matrices are multiples of it

_MASK = (1 << 64) - 1
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_BELOW_ONE = 1.0 - 2.0**-53


def stream_key(seed: int) -> int:
    """The key of a seed's stream of uniforms; consecutive seeds get unrelated keys."""
    return int(_mix(np.array([seed & _MASK], np.uint64) + _GAMMA)[0])


def uniforms(keys: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Element `position` of each key's stream, in [0, 1), without computing those before it.

    SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014)
    seen as a function of a counter.
    """
    bits = _mix(keys + (positions.astype(np.uint64) + np.uint64(1)) * _GAMMA)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def running_mass(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """The mass up to the end of each block of columns: [rows, width] -> [rows, width / BLOCK].

    The last column is a row's total. Blocks are summed in float32, which is exact enough for 256
    addends and needs no float64 copy of the matrix.
    """
    rows, width = weights.shape
    # einsum sums a contiguous axis three times as fast as add.reduce does for rows this short.
    sums: NDArray[np.float32] = np.einsum("rbc->rb", weights.reshape(rows, width // BLOCK, BLOCK))
    return np.cumsum(sums.astype(np.float64), axis=1)


def draw(weights: NDArray[np.float32], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """One column per row by inverting the distribution function, in column order.

    First the block that holds the drawn mass is found, then the column in it, so that no
    cumulative sum runs over the whole row.

    Args:
        weights: [rows, width], at least 0, width a multiple of BLOCK, a positive sum per row.
        uniform: [rows], in [0, 1).
    """
    rows = np.arange(len(weights))
    edges = running_mass(weights)
    drawn = uniform * edges[:, -1]
    block = (edges <= drawn[:, None]).sum(axis=1)
    low = np.where(block > 0, edges[rows, block - 1], 0.0)
    # The block's own float64 sum differs from its float32 sum in the last digits: carry over the
    # fraction, not the mass, so that the draw can never fall behind the block's end.
    fraction = np.minimum((drawn - low) / (edges[rows, block] - low), _BELOW_ONE)
    inside = weights.reshape(len(weights), -1, BLOCK)[rows, block]
    fine = np.cumsum(inside.astype(np.float64), axis=1)
    column = (fine <= (fraction * fine[:, -1])[:, None]).sum(axis=1)
    return np.asarray(block * BLOCK + column, np.int64)


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of 64-bit words; products wrap."""
    bits = (bits ^ (bits >> np.uint64(30))) * _MIX_1
    bits = (bits ^ (bits >> np.uint64(27))) * _MIX_2
    return bits ^ (bits >> np.uint64(31))
