"""Triton functions that the sampling kernels share: sums, thresholds and positions in one row.

A row is described by how much mass lies within a *gap*, which is how far a logit lies below the
row's largest, in units of the temperature. A gap is a float32 of at least 0, whose bit pattern
grows with it, so thresholds (the k-th largest value, the edge of the nucleus, the sampled value)
are found exactly by a search over integers of 31 bits, two bits a step.

Masses are 64-bit integers in fixed point. Their sums do not depend on the order of addition, so
a row gives the same bits however its elements are grouped.

Elements are read BLOCK at a time. Loops whose length is known only when they run are `while`
loops: the interpreter of Triton 3.6 cannot run others with numpy 2.4.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sarathi.backends.torch.kernels import MASS_BITS

# What a sum adds up of each element.
MASS, COUNT = tl.constexpr(0), tl.constexpr(1)
INFINITE = tl.constexpr(0x7F800000)  # bits of an infinite gap, the largest of an element
_OUTSIDE = tl.constexpr(0x7FFFFFFF)  # past the end of the row
_ONE = tl.constexpr(float(1 << MASS_BITS))


@triton.jit
def find_peak(row, length, BLOCK: tl.constexpr):
    """Return the largest value, infinite where one is NaN, its first column, and the maxima of the
    BLOCK groups of columns."""
    lanes = tl.arange(0, BLOCK)
    maxima = tl.full((BLOCK,), float("-inf"), tl.float32)
    starts = tl.full((BLOCK,), 0, tl.int32)
    unsound = tl.full((BLOCK,), 0, tl.int32)
    for start in tl.range(0, length, BLOCK):
        value = tl.load(row + start + lanes, mask=start + lanes < length, other=float("-inf"))
        greater = value > maxima
        maxima = tl.where(greater, value, maxima)
        starts = tl.where(greater, start, starts)
        unsound = tl.where(value != value, 1, unsound)
    peak = tl.max(maxima, axis=0)
    column = tl.min(tl.where(maxima == peak, starts + lanes, length), axis=0)
    peak = tl.where(tl.max(unsound, axis=0) > 0, float("inf"), peak)
    return peak, column, maxima


@triton.jit
def _gaps(source, start, length, peak, inverse_temperature, BLOCK: tl.constexpr):
    """Load BLOCK elements from `start` on, and return the bits of their gaps, int32."""
    offsets = start + tl.arange(0, BLOCK)
    inside = offsets < length
    value = tl.load(source + offsets, mask=inside, other=float("-inf"))
    gap = (peak - value) * inverse_temperature
    return tl.where(inside, gap.to(tl.int32, bitcast=True), _OUTSIDE)


@triton.jit
def mass_at(gaps):
    """Return the mass of an element at each gap, int64."""
    weight = tl.exp(-gaps.to(tl.float32, bitcast=True))
    return tl.where(gaps < INFINITE, weight * _ONE, 0.0).to(tl.int64)


@triton.jit
def sum_within(
    source, length, peak, inverse_temperature, limit, WHAT: tl.constexpr, BLOCK: tl.constexpr
):
    """Return the mass or the number of all elements with gaps up to `limit`, int64."""
    sums = tl.full((BLOCK,), 0, tl.int64)
    start = 0
    while start < length:
        gaps = _gaps(source, start, length, peak, inverse_temperature, BLOCK)
        sums += tl.where(gaps <= limit, mass_at(gaps) if WHAT == MASS else 1, 0)
        start += BLOCK
    return tl.sum(sums, axis=0)


@triton.jit
def search(
    source, length, peak, inverse_temperature, need, limit,
    WHAT: tl.constexpr, BLOCK: tl.constexpr, WAYS: tl.constexpr,
):  # fmt: skip
    """Find the least gap up to which the mass or the number of elements is `need`, which is at
    least 1, and met at `limit`.

    Returns the bits of the gap, int64, and the mass or the number of elements with smaller gaps.
    """
    ways = tl.arange(0, WAYS)
    low = tl.full((), 0, tl.int64)
    high = low + limit
    below = tl.full((), 0, tl.int64)
    while low < high:
        # The last of the bounds is `high`, where `need` is met.
        span = high - low + 1
        bounds = (low + span * (ways + 1) // WAYS - 1).to(tl.int32)
        sums = tl.full((WAYS,), 0, tl.int64)
        start = 0
        while start < length:
            gaps = _gaps(source, start, length, peak, inverse_temperature, BLOCK)
            addend = mass_at(gaps) if WHAT == MASS else tl.full((BLOCK,), 1, tl.int64)
            within = gaps[None, :] <= bounds[:, None]
            sums += tl.sum(tl.where(within, addend[None, :], 0), axis=1)
            start += BLOCK
        below = tl.maximum(below, tl.max(tl.where(sums < need, sums, 0), axis=0))
        short = tl.minimum(tl.sum((sums < need).to(tl.int32), axis=0), WAYS - 1)
        high = low + span * (short + 1) // WAYS - 1
        low = low + span * short // WAYS
    return high, below


@triton.jit
def locate_mass(row, length, peak, inverse_temperature, threshold, BLOCK: tl.constexpr):
    """Find the first column up to which the mass, in column order, is more than `threshold`."""
    start = tl.full((), 0, tl.int32)
    before = tl.full((), 0, tl.int64)
    mass = tl.sum(mass_at(_gaps(row, start, length, peak, inverse_temperature, BLOCK)), axis=0)
    # Triton 3.6 does not compile a loop of which it can prove that it is never entered.
    if length > BLOCK:
        while (before + mass <= threshold) & (start + BLOCK < length):
            before += mass
            start += BLOCK
            mass = tl.sum(
                mass_at(_gaps(row, start, length, peak, inverse_temperature, BLOCK)), axis=0
            )
    masses = mass_at(_gaps(row, start, length, peak, inverse_temperature, BLOCK))
    passed = before + tl.cumsum(masses, axis=0) <= threshold
    return tl.minimum(start + tl.sum(passed.to(tl.int32), axis=0), length - 1)


@triton.jit
def locate_tie(source, length, peak, inverse_temperature, gap, tie, BLOCK: tl.constexpr):
    """Find the position of element number `tie`, from 0, of those with exactly this gap."""
    start = tl.full((), 0, tl.int32)
    before = tl.full((), 0, tl.int64)
    equal = (_gaps(source, start, length, peak, inverse_temperature, BLOCK) == gap).to(tl.int32)
    count = tl.sum(equal, axis=0)
    while (before + count <= tie) & (start + BLOCK < length):
        before += count
        start += BLOCK
        equal = (_gaps(source, start, length, peak, inverse_temperature, BLOCK) == gap).to(tl.int32)
        count = tl.sum(equal, axis=0)
    passed = before + tl.cumsum(equal, axis=0) <= tie
    return tl.minimum(start + tl.sum(passed.to(tl.int32), axis=0), length - 1)


@triton.jit
def collect(row, length, peak, inverse_temperature, limit, values, columns, BLOCK: tl.constexpr):
    """Store values and columns of the elements with gaps up to `limit`, in column order.

    Returns how many there are; only the first BLOCK of them are stored.
    """
    lanes = tl.arange(0, BLOCK)
    count = tl.full((), 0, tl.int32)
    tl.debug_barrier()  # all reads of `values` are done
    for start in tl.range(0, length, BLOCK):
        chosen = _gaps(row, start, length, peak, inverse_temperature, BLOCK) <= limit
        found = tl.sum(chosen.to(tl.int32), axis=0)
        if found > 0:
            indices = count + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
            stored = chosen & (indices < BLOCK)
            value = tl.load(row + start + lanes, mask=stored, other=0.0)
            tl.store(values + indices, value, mask=stored)
            tl.store(columns + indices, start + lanes, mask=stored)
        count += found
    tl.debug_barrier()
    return count


@triton.jit
def rank_of(row, length, value, BLOCK: tl.constexpr):
    """Return 1 more than the number of elements that are greater than `value`."""
    lanes = tl.arange(0, BLOCK)
    greater = tl.full((BLOCK,), 0, tl.int32)
    for start in tl.range(0, length, BLOCK):
        other = tl.load(row + start + lanes, mask=start + lanes < length, other=float("-inf"))
        greater += (other > value).to(tl.int32)
    return tl.sum(greater, axis=0) + 1


@triton.jit
def next_largest(source, length, value, position, BLOCK: tl.constexpr):
    """Return value and position of the element after (value, position) in order of falling values,
    ties by position."""
    lanes = tl.arange(0, BLOCK)
    best = tl.full((), float("-inf"), tl.float32)
    best_position = length
    start = 0
    while start < length:
        offsets = start + lanes
        other = tl.load(source + offsets, mask=offsets < length, other=0.0)
        after = (other < value) | ((other == value) & (offsets > position))
        after = after & (offsets < length)
        largest = tl.max(tl.where(after, other, float("-inf")), axis=0)
        first = tl.min(tl.where(after & (other == largest), offsets, length), axis=0)
        # Among those at minus infinity the first one counts, too.
        better = (largest > best) | ((best_position == length) & (first < length))
        best = tl.where(better, largest, best)
        best_position = tl.where(better, first, best_position)
        start += BLOCK
    return best, best_position
