"""Triton kernels that sample tokens: edits of logits, one token a row, log probabilities.

One program samples one row, without sorting it: `row_search` has the sums and searches. A search
runs over a few candidates instead of the whole row where it can: the columns are divided into
`block` groups, and a threshold that the maxima of the groups reach holds for the row, too. Where
more than `block` columns remain, the distribution is so flat that each of the 16 steps of a search
reads the whole row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import triton
import triton.language as tl

from sarathi.backends.torch.kernels.row_search import (
    COUNT,
    INFINITE,
    MASS,
    collect,
    find_peak,
    locate_mass,
    locate_tie,
    mass_at,
    next_largest,
    rank_of,
    search,
    sum_within,
)
from sarathi.sampling import sampler

# What the kernels read of each row: one field, one column of 64 bits.
ROW = np.dtype(
    [
        ("source", np.int64),  # row of the logits to sample from
        ("row", np.int64),  # row of the batch
        ("slot", np.int64),
        ("needs", np.int64),  # as in `Slots.records`
        ("uniform", np.float64),
        ("inverse_temperature", np.float64),
        ("top_k", np.int64),  # 0 is off
        ("top_p", np.float64),
        ("max_gap", np.float64),  # -log(min_p)
        ("marks", np.int64),  # row of the table of marks, -1 for none; likewise of biases
        ("biases", np.int64),
        ("mask", np.int64),  # row of the masks of grammars, -1 for none
        ("repetition", np.float64),
        ("frequency", np.float64),
        ("presence", np.float64),
    ]
)
# Likewise of each row whose log probabilities are requested.
LOGPROBS_ROW = np.dtype([("row", np.int64), ("alternatives", np.int64)])
# And what they compute of it, followed by the ids and then the logits of the alternatives.
LOGPROBS_RESULT = ("logit", "peak", "mass", "rank")

# A mark of 32 bits for each token of the vocabulary: how often it is in the output, and below
# that two bits.
SEEN, ENDS, COUNT_SHIFT = 1, 2, 2  # penalised for the prompt; barred by min_tokens


@dataclass(frozen=True)
class Tiles:
    """How a program works on its row. No result depends on it."""

    block: int = 4096  # elements at a time, a power of 2; also how many candidates it keeps
    ways: int = 4  # parts into which a step of a search cuts the range, a power of 2
    num_warps: int = 16


# The columns, in the order of the fields.
(
    _SOURCE, _ROW, _SLOT, _NEEDS, _UNIFORM, _SHARPNESS, _TOP_K, _TOP_P, _MAX_GAP,
    _MARKS, _BIASES, _MASK, _REPETITION, _FREQUENCY, _PRESENCE,
) = map(tl.constexpr, range(len(ROW.names or ())))  # fmt: skip
_COLUMNS = tl.constexpr(len(ROW.names or ()))
_LOGPROBS_COLUMNS = tl.constexpr(len(LOGPROBS_ROW.names or ()))
_RESULTS = tl.constexpr(len(LOGPROBS_RESULT))
_RANDOM, _WHOLE, _BARRED = (
    tl.constexpr(bits) for bits in (sampler.RANDOM, sampler.WHOLE, sampler.BARRED)
)
_SEEN, _ENDS, _SHIFT = tl.constexpr(SEEN), tl.constexpr(ENDS), tl.constexpr(COUNT_SHIFT)
_ONCE = tl.constexpr(1 << COUNT_SHIFT)
_LARGEST = tl.constexpr(float(np.finfo(np.float32).max))


@triton.jit
def edit(
    logits, stride, table, marks, biases, masks, edited, VOCAB: tl.constexpr, BLOCK: tl.constexpr
):
    """Copy rows of logits, with bias, then bars, then penalties, as `apply_edits` does, then masks.

    A logit that is NaN or infinite becomes NaN, so that an edit cannot hide it.
    Grid: rows, blocks of the vocabulary.

    Args:
        logits: [rows of the batch, vocab_size], float32, `stride` elements from row to row.
        table: [rows] of `ROW`.
        marks: [marked slots, vocab_size], int32.
        biases: [biased slots, vocab_size], float32.
        masks: [rows with a mask, ceil(vocab_size / 32)], int32, a bit for each token.
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
    mask_row = tl.load(record + _MASK)
    if mask_row >= 0:
        word = masks + mask_row * ((VOCAB + 31) // 32) + columns // 32
        bit = tl.load(word, mask=inside, other=0) >> (columns % 32)
        value = tl.where(bit & 1 != 0, value, float("-inf"))
    value = tl.where(logit < float("inf"), value, float("nan"))
    tl.store(edited + program * VOCAB + columns, value, mask=inside)


@triton.jit
def sample(
    logits, stride, table, marks, values, columns, tokens, last_tokens,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr, WAYS: tl.constexpr,
):  # fmt: skip
    """Choose one token for each row, and count it where the slot has marks. Grid: rows.

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
    peak, token, maxima = find_peak(row, VOCAB, BLOCK)
    if (peak > float("-inf")) & (peak < float("inf")):
        if needs & _RANDOM != 0:
            if needs & _WHOLE != 0:
                inverse_temperature = _real(record + _SHARPNESS)
                total = sum_within(row, VOCAB, peak, inverse_temperature, INFINITE, MASS, BLOCK)
                threshold = _share(_wide(record + _UNIFORM), total)
                token = locate_mass(row, VOCAB, peak, inverse_temperature, threshold, BLOCK)
            else:
                values += program * BLOCK
                columns += program * BLOCK
                tl.store(values + tl.arange(0, BLOCK), maxima)
                token = _sample_truncated(row, peak, record, values, columns, VOCAB, BLOCK, WAYS)
        mark_row = tl.load(record + _MARKS)
        if mark_row >= 0:
            mark = marks + mark_row * VOCAB + token
            tl.store(mark, tl.load(mark) + _ONCE)
    else:
        token = token * 0 - 1
    tl.store(tokens + tl.load(record + _ROW), token.to(tl.int64))
    tl.store(last_tokens + tl.load(record + _SLOT), tl.maximum(token, 0).to(tl.int64))


# Requests ask for different numbers of alternatives: one kernel serves all.
@triton.jit(do_not_specialize=["width"])
def logprobs(
    logits, stride, table, tokens, values, columns, results, width,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr, WAYS: tl.constexpr,
):  # fmt: skip
    """Compute what the log probabilities of each row consist of: see `LOGPROBS_RESULT`. Grid: rows.

    Args:
        logits: [rows of the batch, vocab_size], float32, `stride` elements from row to row.
        table: [rows] of `LOGPROBS_ROW`; no row has more than BLOCK alternatives.
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
        peak, _, maxima = find_peak(row, VOCAB, BLOCK)
        logit = tl.load(row + token)
        tl.store(result, logit.to(tl.float64))
        tl.store(result + 1, peak.to(tl.float64))
        mass = sum_within(row, VOCAB, peak, 1.0, INFINITE, MASS, BLOCK)
        tl.store(result + 2, mass.to(tl.float64))
        tl.store(result + 3, rank_of(row, VOCAB, logit, BLOCK).to(tl.float64))
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
    VOCAB: tl.constexpr, BLOCK: tl.constexpr, WAYS: tl.constexpr,
):  # fmt: skip
    """Store the ids and logits of a row's largest elements in falling order, ties by id. `values`
    holds the maxima of the groups."""
    tl.debug_barrier()
    GROUPS: tl.constexpr = VOCAB if VOCAB < BLOCK else BLOCK
    limit, _ = search(values, GROUPS, peak, 1.0, alternatives, INFINITE, COUNT, BLOCK, WAYS)
    count = collect(row, VOCAB, peak, 1.0, limit, values, columns, BLOCK)
    fits = count <= BLOCK
    source = row
    if fits:
        source = values
    length = tl.where(fits, count, VOCAB)
    logit = peak
    position = tl.full((), -1, tl.int32)
    index = 0
    while index < alternatives:
        logit, position = next_largest(source, length, logit, position, BLOCK)
        column = position
        if fits:
            column = tl.load(columns + position)
        tl.store(result + _RESULTS + index, column.to(tl.float64))
        tl.store(result + _RESULTS + width + index, logit.to(tl.float64))
        index += 1


@triton.jit
def _sample_truncated(
    row, peak, record, values, columns,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr, WAYS: tl.constexpr,
):  # fmt: skip
    """Sample a column by inverting the distribution function in order of falling mass.

    What top_k, top_p and min_p keep are all prefixes of that order, so the shortest is what all
    of them keep, and only its mass is needed. `values` holds the maxima of the groups.
    """
    inverse_temperature = _real(record + _SHARPNESS)
    top_k = tl.load(record + _TOP_K)
    top_p = _wide(record + _TOP_P)
    max_gap = _real(record + _MAX_GAP).to(tl.int32, bitcast=True).to(tl.int64)
    tl.debug_barrier()

    # A gap that no kept column exceeds.
    GROUPS: tl.constexpr = VOCAB if VOCAB < BLOCK else BLOCK
    limit = tl.full((), INFINITE, tl.int64)
    total = tl.full((), 0, tl.int64)
    if top_k > 0:
        if top_k <= GROUPS:
            limit, _ = search(
                values, GROUPS, peak, inverse_temperature, top_k, INFINITE, COUNT, BLOCK, WAYS
            )
    else:
        if top_p < 1:
            total = sum_within(row, VOCAB, peak, inverse_temperature, INFINITE, MASS, BLOCK)
            need = _at_least(top_p, total)
            if sum_within(values, GROUPS, peak, inverse_temperature, INFINITE, MASS, BLOCK) >= need:
                limit, _ = search(
                    values, GROUPS, peak, inverse_temperature, need, INFINITE, MASS, BLOCK, WAYS
                )
        limit = tl.minimum(limit, max_gap)

    count = collect(row, VOCAB, peak, inverse_temperature, limit, values, columns, BLOCK)
    fits = count <= BLOCK
    source = row
    if fits:
        source = values
    length = tl.where(fits, count, VOCAB)

    # The mass of what is kept: first by min_p, then by top_k, then by top_p.
    largest = tl.minimum(limit, max_gap)
    kept = sum_within(source, length, peak, inverse_temperature, largest, MASS, BLOCK)
    within = kept
    if top_k > 0:
        edge, above = search(
            source, length, peak, inverse_temperature, top_k, limit, COUNT, BLOCK, WAYS
        )
        total = sum_within(source, length, peak, inverse_temperature, edge - 1, MASS, BLOCK)
        total += (top_k - above) * mass_at(edge.to(tl.int32))
        kept = tl.minimum(kept, total)
    if top_p < 1:
        need = tl.minimum(_at_least(top_p, total), within)
        edge, above = search(
            source, length, peak, inverse_temperature, need, largest, MASS, BLOCK, WAYS
        )
        each = tl.maximum(mass_at(edge.to(tl.int32)), 1)
        kept = tl.minimum(kept, above + (need - above + each - 1) // each * each)

    threshold = _share(_wide(record + _UNIFORM), kept)
    edge, above = search(
        source, length, peak, inverse_temperature, threshold + 1, largest, MASS, BLOCK, WAYS
    )
    tie = (threshold - above) // tl.maximum(mass_at(edge.to(tl.int32)), 1)
    column = locate_tie(source, length, peak, inverse_temperature, edge, tie, BLOCK)
    if fits:
        column = tl.load(columns + column)
    return column


@triton.jit
def _at_least(share, total):
    """Return the least integer of at least 1 that is no less than `share` of `total`."""
    exact = share * total.to(tl.float64)
    below = exact.to(tl.int64)
    return tl.minimum(tl.maximum(below + (below.to(tl.float64) < exact), 1), total)


@triton.jit
def _share(uniform, total):
    """Scale a uniform number in [0, 1) to an integer below `total`."""
    return tl.minimum((uniform * total.to(tl.float64)).to(tl.int64), total - 1)


@triton.jit
def _wide(column):
    """Load a column of 64 bits that holds a float64."""
    return tl.load(column).to(tl.float64, bitcast=True)


@triton.jit
def _real(column):
    """Load a column of 64 bits that holds a float64, as float32."""
    return _wide(column).to(tl.float32)
