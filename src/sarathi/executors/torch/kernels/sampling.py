"""Triton kernels that sample tokens: edits of logits, one token a row, log probabilities.

One program samples one row. Nothing is sorted: a row is described by how much mass lies within a
*gap*, which is how far a logit lies below the row's largest, in units of the temperature. A gap
is a float32 of at least 0, whose bit pattern grows with it, so thresholds (the k-th largest
value, the edge of the nucleus, the drawn value) are found exactly by a search over 31-bit
integers, two bits at a time.

Masses are 64-bit integers in fixed point. Their sums do not depend on the order of addition, so
a row gives the same bits whichever way its tokens are grouped.

A search runs over a few candidates instead of the whole row where it can: the columns are dealt
out to BLOCK groups, and a threshold that the maxima of the groups meet holds for the row, too.
Where more than BLOCK columns remain, the distribution is so flat that each of the 16 steps of a
search reads the whole row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import triton
import triton.language as tl

from sarathi.sampling import slots

# What the kernels read of each row: one field, one column of 64 bits.
ROW = np.dtype(
    [
        ("source", np.int64),  # row of the logits to sample from
        ("row", np.int64),  # row of the batch
        ("slot", np.int64),
        ("needs", np.int64),  # as in `Slots.records`
        ("uniform", np.float64),
        ("sharpness", np.float64),
        ("top_k", np.int64),  # 0 is off
        ("top_p", np.float64),
        ("max_gap", np.float64),  # -log(min_p)
        ("marks", np.int64),  # row of the table of marks, -1 for none; likewise of biases
        ("biases", np.int64),
        ("repetition", np.float64),
        ("frequency", np.float64),
        ("presence", np.float64),
    ]
)
# Likewise of each row whose log probabilities are asked for.
LOGPROBS_ROW = np.dtype([("row", np.int64), ("alternatives", np.int64)])
# And what they give of it, followed by the ids and then the logits of the alternatives.
LOGPROBS_RESULT = ("logit", "peak", "mass", "rank")

# A mark of 32 bits for each token of the vocabulary: how often it is in the output, and below
# that two bits.
SEEN, ENDS, COUNT_SHIFT = 1, 2, 2  # penalised for the prompt; barred by min_tokens
MASS_BITS = 42  # the mass of a row's largest logit is 2 ** MASS_BITS
MAX_VOCAB_SIZE = 1 << (62 - MASS_BITS)


@dataclass(frozen=True)
class Tiles:
    """How a program works on its row. No result depends on it."""

    block: int = 4096  # elements at a time, a power of 2; also how many candidates it keeps
    ways: int = 4  # parts into which a step of a search cuts the range, a power of 2
    num_warps: int = 16


def _column(name: str) -> tl.constexpr:
    return tl.constexpr(ROW.names.index(name))


_SOURCE = _column("source")
_ROW = _column("row")
_SLOT = _column("slot")
_NEEDS = _column("needs")
_UNIFORM = _column("uniform")
_SHARPNESS = _column("sharpness")
_TOP_K = _column("top_k")
_TOP_P = _column("top_p")
_MAX_GAP = _column("max_gap")
_MARKS = _column("marks")
_BIASES = _column("biases")
_REPETITION = _column("repetition")
_FREQUENCY = _column("frequency")
_PRESENCE = _column("presence")
_COLUMNS = tl.constexpr(len(ROW.names))
_LOGPROBS_COLUMNS = tl.constexpr(len(LOGPROBS_ROW.names))
_RESULTS = tl.constexpr(len(LOGPROBS_RESULT))
_RANDOM, _WHOLE, _BARRED = (
    tl.constexpr(bits) for bits in (slots.RANDOM, slots.WHOLE, slots.BARRED)
)
_SEEN, _ENDS, _SHIFT = tl.constexpr(SEEN), tl.constexpr(ENDS), tl.constexpr(COUNT_SHIFT)
_ONCE = tl.constexpr(1 << COUNT_SHIFT)
_ONE = tl.constexpr(float(1 << MASS_BITS))
_LARGEST = tl.constexpr(float(np.finfo(np.float32).max))
_INFINITE = tl.constexpr(0x7F800000)  # bits of an infinite gap, the largest of a column
_OUTSIDE = tl.constexpr(0x7FFFFFFF)  # of no column

# What a sum adds up of each column.
_MASS, _COUNT = tl.constexpr(0), tl.constexpr(1)


@triton.jit
def edit(
    logits: tl.tensor,
    stride: tl.tensor,
    table: tl.tensor,
    marks: tl.tensor,
    biases: tl.tensor,
    edited: tl.tensor,
    VOCAB: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
) -> None:
    """Copy rows of logits, with bias, then bars, then penalties, as `penalties.apply` does.

    A logit that is NaN or infinite becomes NaN, so that an edit cannot hide it.

    Grid: rows, blocks of the vocabulary.

    Args:
        logits: [rows of the batch, vocab_size], float32, `stride` elements from row to row.
        table: [rows] of `ROW`.
        marks: [marked slots, vocab_size], int32.
        biases: [biased slots, vocab_size], float32.
        edited: [rows, vocab_size], float32, written.
    """
    program = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < VOCAB
    record = table + program * _COLUMNS
    logit = tl.load(logits + tl.load(record + _ROW) * stride + columns, mask=inside, other=0.0)
    value = logit
    bias_row = tl.load(record + _BIASES)
    if bias_row >= 0:
        value += tl.load(biases + bias_row * VOCAB + columns, mask=inside, other=0.0)
    mark_row = tl.load(record + _MARKS)
    if mark_row >= 0:
        mark = tl.load(marks + mark_row * VOCAB + columns, mask=inside, other=0)
        if tl.load(record + _NEEDS) & _BARRED != 0:
            value = tl.where(mark & _ENDS != 0, float("-inf"), value)
        count = mark >> _SHIFT
        repetition = _real(record + _REPETITION)
        penalised = tl.where(value > 0, tl.div_rn(value, repetition), value * repetition)
        penalised -= _real(record + _FREQUENCY) * count.to(tl.float32) + tl.where(
            count > 0, _real(record + _PRESENCE), 0.0
        )
        # A tiny repetition penalty may overflow; the token is then the likeliest, not an error.
        penalised = tl.minimum(penalised, _LARGEST)
        value = tl.where((mark & _SEEN != 0) | (count > 0), penalised, value)
    value = tl.where(logit < float("inf"), value, float("nan"))
    tl.store(edited + program * VOCAB + columns, value, mask=inside)


@triton.jit
def sample(
    logits: tl.tensor,
    stride: tl.tensor,
    table: tl.tensor,
    marks: tl.tensor,
    values: tl.tensor,
    columns: tl.tensor,
    tokens: tl.tensor,
    last_tokens: tl.tensor,
    VOCAB: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
    WAYS: tl.constexpr,  # noqa: N803
) -> None:
    """Choose one token for each row, and count it where the slot has marks.

    Grid: rows.

    Args:
        logits: [sources, vocab_size], float32, `stride` elements from row to row.
        table: [rows] of `ROW`.
        marks: [marked slots, vocab_size], int32; the sampled token's is updated.
        values: [rows, BLOCK], float32, scratch; likewise `columns`, int32.
        tokens: [rows of the batch], int64, written; -1 where none can be chosen.
        last_tokens: [slots], int64, written; 0 where none can be chosen.
    """
    program = tl.program_id(0).to(tl.int64)
    record = table + program * _COLUMNS
    row = logits + tl.load(record + _SOURCE) * stride
    needs = tl.load(record + _NEEDS)
    peak, token, maxima = _peak(row, VOCAB, BLOCK, WAYS)
    if (peak > float("-inf")) & (peak < float("inf")):
        if needs & _RANDOM != 0:
            if needs & _WHOLE != 0:
                sharpness = _real(record + _SHARPNESS)
                total = _sum(row, VOCAB, peak, sharpness, _INFINITE, _MASS, BLOCK)
                drawn = _share(_wide(record + _UNIFORM), total)
                token = _locate_mass(row, VOCAB, peak, sharpness, drawn, BLOCK)
            else:
                values += program * BLOCK
                columns += program * BLOCK
                tl.store(values + tl.arange(0, BLOCK), maxima)
                token = _draw_truncated(row, peak, record, values, columns, VOCAB, BLOCK, WAYS)
        mark_row = tl.load(record + _MARKS)
        if mark_row >= 0:
            mark = marks + mark_row * VOCAB + token
            tl.store(mark, tl.load(mark) + _ONCE)
    else:
        token = token * 0 - 1
    tl.store(tokens + tl.load(record + _ROW), token.to(tl.int64))
    tl.store(last_tokens + tl.load(record + _SLOT), tl.maximum(token, 0).to(tl.int64))


@triton.jit
def logprobs(
    logits: tl.tensor,
    stride: tl.tensor,
    table: tl.tensor,
    tokens: tl.tensor,
    values: tl.tensor,
    columns: tl.tensor,
    results: tl.tensor,
    width: tl.tensor,
    VOCAB: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
    WAYS: tl.constexpr,  # noqa: N803
) -> None:
    """Find what the log probabilities of a row consist of: see `LOGPROBS_RESULT`.

    Grid: rows.

    Args:
        logits: [rows of the batch, vocab_size], float32, `stride` elements from row to row.
        table: [rows] of `LOGPROBS_ROW`; no row asks for more than BLOCK alternatives.
        tokens: [rows of the batch], int64, the sampled ones; a row of -1 has no result.
        values: [rows, BLOCK], float32, scratch; likewise `columns`, int32.
        results: [rows, 4 + 2 * width], float64, written.
        width: the most alternatives of a row.
    """
    program = tl.program_id(0).to(tl.int64)
    record = table + program * _LOGPROBS_COLUMNS
    token = tl.load(tokens + tl.load(record))
    if token >= 0:
        row = logits + tl.load(record) * stride
        result = results + program * (_RESULTS + 2 * width)
        peak, _, maxima = _peak(row, VOCAB, BLOCK, WAYS)
        logit = tl.load(row + token)
        tl.store(result, logit.to(tl.float64))
        tl.store(result + 1, peak.to(tl.float64))
        mass = _sum(row, VOCAB, peak, 1.0, _INFINITE, _MASS, BLOCK)
        tl.store(result + 2, mass.to(tl.float64))
        tl.store(result + 3, _rank(row, VOCAB, logit, BLOCK).to(tl.float64))
        alternatives = tl.load(record + 1)
        if alternatives > 0:
            values += program * BLOCK
            columns += program * BLOCK
            tl.store(values + tl.arange(0, BLOCK), maxima)
            _list_largest(
                row, peak, alternatives, width, values, columns, result, VOCAB, BLOCK, WAYS
            )


@triton.jit
def _list_largest(
    row, peak, alternatives, width, values, columns, result,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr, WAYS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Store the ids and logits of a row's largest elements in falling order, ties by id.

    `values` holds the maxima of the groups.
    """
    tl.debug_barrier()
    GROUPS: tl.constexpr = VOCAB if VOCAB < BLOCK else BLOCK  # noqa: N806
    limit = _search(values, GROUPS, peak, 1.0, alternatives, _INFINITE, _COUNT, BLOCK, WAYS)
    count = _collect(row, VOCAB, peak, 1.0, limit, values, columns, BLOCK)
    fits = count <= BLOCK
    source = row
    if fits:
        source = values
    length = tl.where(fits, count, VOCAB)
    logit = peak
    position = tl.full((), -1, tl.int32)
    index = 0
    while index < alternatives:
        logit, position = _next_largest(source, length, logit, position, BLOCK)
        column = position
        if fits:
            column = tl.load(columns + position)
        tl.store(result + _RESULTS + index, column.to(tl.float64))
        tl.store(result + _RESULTS + width + index, logit.to(tl.float64))
        index += 1


@triton.jit
def _draw_truncated(
    row, peak, record, values, columns,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr, WAYS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Draw a column by inverting the distribution function in order of falling mass.

    What top_k, top_p and min_p keep are all prefixes of that order, so the shortest is what all
    of them keep, and its mass is all that the draw needs. `values` holds the maxima of the groups.
    """
    sharpness = _real(record + _SHARPNESS)
    top_k = tl.load(record + _TOP_K)
    top_p = _wide(record + _TOP_P)
    max_gap = _real(record + _MAX_GAP).to(tl.int32, bitcast=True).to(tl.int64)
    tl.debug_barrier()

    # A gap that no kept column exceeds.
    GROUPS: tl.constexpr = VOCAB if VOCAB < BLOCK else BLOCK  # noqa: N806
    limit = tl.full((), _INFINITE, tl.int64)
    total = tl.full((), 0, tl.int64)
    if top_k > 0:
        if top_k <= GROUPS:
            limit = _search(values, GROUPS, peak, sharpness, top_k, _INFINITE, _COUNT, BLOCK, WAYS)
    else:
        if top_p < 1:
            total = _sum(row, VOCAB, peak, sharpness, _INFINITE, _MASS, BLOCK)
            need = _at_least(top_p, total)
            if _sum(values, GROUPS, peak, sharpness, _INFINITE, _MASS, BLOCK) >= need:
                limit = _search(
                    values, GROUPS, peak, sharpness, need, _INFINITE, _MASS, BLOCK, WAYS
                )
        limit = tl.minimum(limit, max_gap)

    count = _collect(row, VOCAB, peak, sharpness, limit, values, columns, BLOCK)
    fits = count <= BLOCK
    source = row
    if fits:
        source = values
    length = tl.where(fits, count, VOCAB)

    # The mass of what is kept: first by min_p, then by top_k, then by top_p.
    largest = tl.minimum(limit, max_gap)
    kept = _sum(source, length, peak, sharpness, largest, _MASS, BLOCK)
    within = kept
    if top_k > 0:
        edge = _search(source, length, peak, sharpness, top_k, limit, _COUNT, BLOCK, WAYS)
        above = _sum(source, length, peak, sharpness, edge - 1, _COUNT, BLOCK)
        total = _sum(source, length, peak, sharpness, edge - 1, _MASS, BLOCK)
        total += (top_k - above) * _mass(edge.to(tl.int32))
        kept = tl.minimum(kept, total)
    if top_p < 1:
        need = tl.minimum(_at_least(top_p, total), within)
        edge = _search(source, length, peak, sharpness, need, largest, _MASS, BLOCK, WAYS)
        above = _sum(source, length, peak, sharpness, edge - 1, _MASS, BLOCK)
        each = tl.maximum(_mass(edge.to(tl.int32)), 1)
        kept = tl.minimum(kept, above + (need - above + each - 1) // each * each)

    drawn = _share(_wide(record + _UNIFORM), kept)
    edge = _search(source, length, peak, sharpness, drawn + 1, largest, _MASS, BLOCK, WAYS)
    above = _sum(source, length, peak, sharpness, edge - 1, _MASS, BLOCK)
    tie = (drawn - above) // tl.maximum(_mass(edge.to(tl.int32)), 1)
    column = _locate_tie(source, length, peak, sharpness, edge, tie, BLOCK)
    if fits:
        column = tl.load(columns + column)
    return column


@triton.jit
def _peak(row, length, BLOCK):
    """The largest value (infinite if one is NaN), its first column, the maxima of the groups."""
    lanes = tl.arange(0, BLOCK)
    maxima = tl.full((BLOCK,), float("-inf"), tl.float32)
    starts = tl.zeros((BLOCK,), tl.int32)
    unsound = tl.zeros((BLOCK,), tl.int32)
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
def _gaps(source, start, length, peak, sharpness, BLOCK):
    """The bits of the gaps of BLOCK elements from `start` on, int32."""
    offsets = start + tl.arange(0, BLOCK)
    inside = offsets < length
    value = tl.load(source + offsets, mask=inside, other=float("-inf"))
    gap = (peak - value) * sharpness
    return tl.where(inside, gap.to(tl.int32, bitcast=True), _OUTSIDE)


@triton.jit
def _mass(gaps):
    """The mass at each gap, int64."""
    weight = tl.exp(-gaps.to(tl.float32, bitcast=True))
    return tl.where(gaps < _INFINITE, weight * _ONE, 0.0).to(tl.int64)


@triton.jit
def _sum(source, length, peak, sharpness, limit, WHAT: tl.constexpr, BLOCK):
    """The mass or the number of all elements with gaps up to `limit`, int64."""
    sums = tl.zeros((BLOCK,), tl.int64)
    start = 0
    while start < length:
        gaps = _gaps(source, start, length, peak, sharpness, BLOCK)
        sums += tl.where(gaps <= limit, _mass(gaps) if WHAT == _MASS else 1, 0)
        start += BLOCK
    return tl.sum(sums, axis=0)


@triton.jit
def _search(
    source, length, peak, sharpness, need, limit,
    WHAT: tl.constexpr, BLOCK: tl.constexpr, WAYS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """The least gap up to which the mass or the number of elements is `need`, int64 bits.

    `need` is at least 1, and met at `limit`.
    """
    ways = tl.arange(0, WAYS)
    low = tl.full((), 0, tl.int64)
    high = low + limit
    while low < high:
        # The last of the bounds is `high`, where `need` is met.
        span = high - low + 1
        bounds = (low + span * (ways + 1) // WAYS - 1).to(tl.int32)
        sums = tl.zeros((WAYS,), tl.int64)
        start = 0
        while start < length:
            gaps = _gaps(source, start, length, peak, sharpness, BLOCK)
            addend = _mass(gaps) if WHAT == _MASS else tl.full((BLOCK,), 1, tl.int64)
            within = gaps[None, :] <= bounds[:, None]
            sums += tl.sum(tl.where(within, addend[None, :], 0), axis=1)
            start += BLOCK
        short = tl.minimum(tl.sum((sums < need).to(tl.int32), axis=0), WAYS - 1)
        high = low + span * (short + 1) // WAYS - 1
        low = low + span * short // WAYS
    return high


@triton.jit
def _locate_mass(row, length, peak, sharpness, drawn, BLOCK):
    """The first column up to which the mass, in column order, is more than `drawn`."""
    start = tl.full((), 0, tl.int32)
    before = tl.full((), 0, tl.int64)
    mass = tl.sum(_mass(_gaps(row, start, length, peak, sharpness, BLOCK)), axis=0)
    while (before + mass <= drawn) & (start + BLOCK < length):
        before += mass
        start += BLOCK
        mass = tl.sum(_mass(_gaps(row, start, length, peak, sharpness, BLOCK)), axis=0)
    masses = _mass(_gaps(row, start, length, peak, sharpness, BLOCK))
    passed = before + tl.cumsum(masses, axis=0) <= drawn
    return tl.minimum(start + tl.sum(passed.to(tl.int32), axis=0), length - 1)


@triton.jit
def _locate_tie(source, length, peak, sharpness, gap, tie, BLOCK):
    """The position of the element number `tie`, from 0, of those with exactly this gap."""
    start = tl.full((), 0, tl.int32)
    before = tl.full((), 0, tl.int64)
    equal = (_gaps(source, start, length, peak, sharpness, BLOCK) == gap).to(tl.int32)
    count = tl.sum(equal, axis=0)
    while (before + count <= tie) & (start + BLOCK < length):
        before += count
        start += BLOCK
        equal = (_gaps(source, start, length, peak, sharpness, BLOCK) == gap).to(tl.int32)
        count = tl.sum(equal, axis=0)
    passed = before + tl.cumsum(equal, axis=0) <= tie
    return tl.minimum(start + tl.sum(passed.to(tl.int32), axis=0), length - 1)


@triton.jit
def _collect(row, length, peak, sharpness, limit, values, columns, BLOCK):
    """Store values and columns of the elements with gaps up to `limit`, in column order.

    Returns:
        How many there are; only the first BLOCK of them are stored.
    """
    lanes = tl.arange(0, BLOCK)
    count = tl.full((), 0, tl.int32)
    tl.debug_barrier()  # what has been in `values` has been read
    for start in tl.range(0, length, BLOCK):
        chosen = _gaps(row, start, length, peak, sharpness, BLOCK) <= limit
        found = tl.sum(chosen.to(tl.int32), axis=0)
        if found > 0:
            places = count + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
            stored = chosen & (places < BLOCK)
            value = tl.load(row + start + lanes, mask=stored, other=0.0)
            tl.store(values + places, value, mask=stored)
            tl.store(columns + places, start + lanes, mask=stored)
        count += found
    tl.debug_barrier()
    return count


@triton.jit
def _rank(row, length, value, BLOCK):
    """1 more than the number of elements that are greater than `value`."""
    lanes = tl.arange(0, BLOCK)
    greater = tl.zeros((BLOCK,), tl.int32)
    for start in tl.range(0, length, BLOCK):
        other = tl.load(row + start + lanes, mask=start + lanes < length, other=float("-inf"))
        greater += (other > value).to(tl.int32)
    return tl.sum(greater, axis=0) + 1


@triton.jit
def _next_largest(source, length, value, position, BLOCK):
    """The element after (value, position) in order of falling values, ties by position."""
    lanes = tl.arange(0, BLOCK)
    best = tl.full((), float("-inf"), tl.float32)
    place = length
    start = 0
    while start < length:
        offsets = start + lanes
        other = tl.load(source + offsets, mask=offsets < length, other=0.0)
        after = (other < value) | ((other == value) & (offsets > position))
        after = after & (offsets < length)
        largest = tl.max(tl.where(after, other, float("-inf")), axis=0)
        first = tl.min(tl.where(after & (other == largest), offsets, length), axis=0)
        # Among those at minus infinity the first one counts, too.
        better = (largest > best) | ((place == length) & (first < length))
        best = tl.where(better, largest, best)
        place = tl.where(better, first, place)
        start += BLOCK
    return best, place


@triton.jit
def _at_least(share, total):
    """The least integer of at least 1 that is no less than `share` of `total`."""
    exact = share * total.to(tl.float64)
    below = exact.to(tl.int64)
    return tl.minimum(tl.maximum(below + (below.to(tl.float64) < exact), 1), total)


@triton.jit
def _share(uniform, total):
    """The integer below `total` that a uniform number in [0, 1) stands for."""
    return tl.minimum((uniform * total.to(tl.float64)).to(tl.int64), total - 1)


@triton.jit
def _wide(column):
    """A column of 64 bits that holds a float64."""
    return tl.load(column).to(tl.float64, bitcast=True)


@triton.jit
def _real(column):
    """A column of 64 bits that holds a float64, as float32."""
    return _wide(column).to(tl.float32)
