"""One iteration as plain arrays: the input of every executor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sarathi.scheduler import Batch

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


_NO_SLOTS: Mapping[int, int] = {}
_NO_POOLED_ROWS: I64 = np.empty(0, np.int64)


class StepError(ValueError):
    """A step contradicts itself or the KV cache; running it could corrupt memory."""


@dataclass(frozen=True, slots=True)
class Step:
    """Ragged sequences of one iteration, concatenated: T tokens of B sequences, S sampled rows."""

    token_ids: I64  # [T]; -1 - s is a placeholder: the token that the step before samples, slot s
    positions: I64  # [T]
    query_starts: I32  # [B + 1], where each sequence's tokens begin
    past_lens: I32  # [B], tokens of each sequence in the KV cache
    block_ids: I32  # [sum of blocks], the sequences' block tables one after the other
    block_starts: I32  # [B + 1], where each block table begins
    # [S], token rows whose logits are wanted: those to sample from, then those that are scored
    sample_rows: I64
    # [P], token rows whose final hidden states are wanted
    pooled_rows: I64 = field(default_factory=lambda: _NO_POOLED_ROWS)

    @property
    def max_context_len(self) -> int:
        """Tokens, cached and new, of the longest sequence."""
        return int((self.past_lens + np.diff(self.query_starts)).max())


class StepPart(NamedTuple):
    """What a step computes of one sequence."""

    token_ids: Sequence[int]
    past: int  # tokens in the KV cache
    blocks: Sequence[int]  # of the sequence; more than `past` and the new tokens need is fine
    samples: bool  # whether the logits of the last token are wanted


def build_step(batch: Batch, block_size: int, slots: Mapping[int, int] = _NO_SLOTS) -> Step:
    """Build the arrays of a batch; the sampler's slots, by request id, are for tokens that are not
    sampled yet."""
    step = join_parts(
        [
            StepPart(
                # A slice beyond the known tokens is a look-ahead decode.
                request.tokens(start, length) or (-1 - slots[request.id],),
                start,
                request.blocks,
                samples,
            )
            for request, start, length, samples in batch.slices
        ],
        block_size,
    )
    return _with_wanted_rows(step, batch) if batch.num_scored or batch.num_pooled else step


def _with_wanted_rows(step: Step, batch: Batch) -> Step:
    """Add the rows that requests want of their prompts."""
    scored: list[int] = []
    pooled: list[int] = []
    for index, positions in batch.wanted():
        request, start, _, _ = batch.slices[index]
        first = int(step.query_starts[index]) - start
        rows = pooled if request.pools else scored
        rows.extend(range(first + positions.start, first + positions.stop))
    return replace(
        step,
        sample_rows=np.append(step.sample_rows, np.array(scored, np.int64)),
        pooled_rows=np.array(pooled, np.int64),
    )


def join_parts(parts: Sequence[StepPart], block_size: int) -> Step:
    """Build the arrays of parts of different sequences.

    A block table ends at the last token of its part: a running chunk never sees blocks of
    later chunks.
    """
    lengths = [len(part.token_ids) for part in parts]
    tables = [
        part.blocks[: -(-(part.past + length) // block_size)]
        for part, length in zip(parts, lengths, strict=True)
    ]
    query_starts = _starts(lengths)
    past = np.array([part.past for part in parts], np.int32)
    tokens = chain.from_iterable(part.token_ids for part in parts)
    token_ids = np.fromiter(tokens, np.int64, query_starts[-1])
    # Position = row - first row of the sequence + tokens before: one vectorised expression.
    positions = np.arange(query_starts[-1]) + np.repeat(past - query_starts[:-1], lengths)
    block_starts = _starts(map(len, tables))
    return Step(
        token_ids=token_ids,
        positions=positions,
        query_starts=query_starts,
        past_lens=past,
        block_ids=np.fromiter(chain.from_iterable(tables), np.int32, block_starts[-1]),
        block_starts=block_starts,
        sample_rows=np.array(
            [end - 1 for end, part in zip(query_starts[1:], parts, strict=True) if part.samples],
            np.int64,
        ),
    )


def with_padding_sequence(step: Step, block_id: int) -> Step:
    """Add a sequence of one token, in an unused KV block, to a step, without logits."""
    return Step(
        token_ids=np.append(step.token_ids, 0),
        positions=np.append(step.positions, 0),
        query_starts=np.append(step.query_starts, step.query_starts[-1] + 1),
        past_lens=np.append(step.past_lens, np.int32(0)),
        block_ids=np.append(step.block_ids, np.int32(block_id)),
        block_starts=np.append(step.block_starts, step.block_starts[-1] + 1),
        sample_rows=step.sample_rows,
        pooled_rows=step.pooled_rows,
    )


def _starts(lengths: Iterable[int]) -> I32:
    return np.array([0, *accumulate(lengths)], np.int32)


def check_step(
    step: Step,
    *,
    num_blocks: int,
    block_size: int,
    vocab_size: int,
    max_position: int,
    num_slots: int = 0,
) -> None:
    """Raise `StepError` unless native code can run the step without leaving its memory.

    Input tokens may be taken from `num_slots` slots of the sampler. All checks are vectorised: this
    runs before every iteration.
    """
    queries = np.diff(step.query_starts)
    tables = np.diff(step.block_starts)
    count = len(step.past_lens)
    num_tokens = len(step.token_ids)
    if count == 0 or len(queries) != count or len(tables) != count:
        raise StepError(
            f"{count} sequences with {len(queries)} queries and {len(tables)} block tables"
        )
    if len(step.positions) != num_tokens:
        raise StepError(f"{num_tokens} tokens at {len(step.positions)} positions")
    _check_starts("query_starts", step.query_starts, queries, num_tokens)
    _check_starts("block_starts", step.block_starts, tables, len(step.block_ids))
    if step.past_lens.min() < 0:
        raise StepError("past_lens holds a negative length")
    needed = -(-(step.past_lens + queries) // block_size)
    if not np.array_equal(needed, tables):
        raise StepError("the block tables do not match the sequences' lengths")
    _check_range("block_ids", step.block_ids, num_blocks)
    _check_range("token_ids", step.token_ids, vocab_size, -num_slots)
    _check_range("positions", step.positions, max_position)
    _check_range("sample_rows", step.sample_rows, num_tokens)
    _check_range("pooled_rows", step.pooled_rows, num_tokens)


def _check_starts(name: str, starts: I32, lengths: I32, total: int) -> None:
    if starts[0] != 0 or starts[-1] != total or lengths.min() < 1:
        raise StepError(f"{name} does not partition {total} entries into non-empty ranges")


def _check_range(name: str, values: npt.NDArray[np.integer], bound: int, least: int = 0) -> None:
    if len(values) and (values.min() < least or values.max() >= bound):
        found = f"{values.min()}..{values.max()}"
        raise StepError(f"{name} holds {found}, expected {least}..{bound - 1}")
