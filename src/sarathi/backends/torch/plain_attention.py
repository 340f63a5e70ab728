"""Attention on CPUs, in torch's own operations: blocks are gathered, softmax is in float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from sarathi.backends.step import I32, I64
from sarathi.backends.torch.attention_backend import LayerCache, PlannedAttention
from sarathi.backends.torch.step_inputs import StepArrays, StepInputs
from sarathi.models.model_config import ModelConfig

_MAX_ROWS = 512  # of a prompt at a time: bounds the mask
# Bytes of keys that decodes gather at a time: they stay in the processor's cache until they are
# used, and need no new memory from the system every time.
_GATHERED = 2 << 20


@dataclass(frozen=True)
class _Part:
    """Sequences with equally many new tokens, padded to equally many cached ones."""

    rows: slice | torch.Tensor  # of their tokens
    queries: int  # of each sequence
    blocks: torch.Tensor  # [sequences, blocks]
    context: int  # tokens
    mask: torch.Tensor | None  # [sequences, 1, queries, context], -inf where nothing is seen
    causal: bool  # whether that is all up to the query

    def attention(
        self, query: torch.Tensor, cache: LayerCache, scale: float, soft_cap: float
    ) -> torch.Tensor:
        _, heads, size = query.shape
        queries = query[self.rows].view(-1, self.queries, heads, size).transpose(1, 2)
        keys, values = self._gather(cache.keys), self._gather(cache.values)
        mixed: torch.Tensor
        if soft_cap:
            mixed = _capped_attention(queries, keys, values, self.mask, scale, soft_cap)
        else:
            mixed = functional.scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=self.mask,
                is_causal=self.causal,
                scale=scale,
                enable_gqa=True,
            )
        return mixed.transpose(1, 2).reshape(-1, heads, size)

    def _gather(self, cached: torch.Tensor) -> torch.Tensor:
        """Gather the blocks, [sequences, key heads, context, head_dim]."""
        tokens = cached[self.blocks].flatten(1, 2)
        return tokens[:, : self.context].transpose(1, 2)


class PlainAttention:
    """See `attention_backend.Attention`."""

    block_size = 32
    supports_graphs = False

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype, *, one_by_one: bool = False
    ) -> None:
        """Choose how much decodes gather at a time, for a model with the heads of one rank. With
        `one_by_one` they are computed separately: padding changes how sums round."""
        self._dtype = dtype
        self._scale, self._soft_cap = config.score_scale, config.attention_soft_cap
        block = self.block_size * config.num_kv_heads * config.head_dim * dtype.itemsize
        # Blocks that are gathered for decodes at a time.
        self._most = 1 if one_by_one else _GATHERED // block

    def prepare(self, arrays: StepArrays, *, fixed_shape: bool = False) -> StepArrays:
        return arrays

    def plan(self, arrays: StepArrays, inputs: StepInputs) -> PlannedAttention:
        by_window: dict[int, list[_Part]] = {}  # models have one window or two

        def attention(query: torch.Tensor, cache: LayerCache, window: int) -> torch.Tensor:
            if window not in by_window:
                by_window[window] = [*self._decodes(arrays, window), *self._prompts(arrays, window)]
            parts = by_window[window]
            if len(parts) == 1 and isinstance(parts[0].rows, slice):
                return parts[0].attention(query, cache, self._scale, self._soft_cap)
            mixed = torch.empty_like(query)
            for part in parts:
                mixed[part.rows] = part.attention(query, cache, self._scale, self._soft_cap)
            return mixed

        return attention

    def _decodes(self, arrays: StepArrays, window: int) -> Iterator[_Part]:
        """Group decodes of similar length, so that there is little padding."""
        chosen = np.flatnonzero(np.diff(arrays.query_starts) == 1)
        positions = arrays.contexts[chosen].astype(np.int64) - 1
        firsts = self._first_blocks(positions, window)
        blocks = positions // self.block_size - firsts + 1
        for group in _similar(blocks, self._most):
            group.sort()
            sequences = chosen[group]
            ids = firsts[group, None] + np.arange(blocks[group].max())
            # Entries past the end of a table are masked.
            tables = arrays.tables[sequences[:, None], np.minimum(ids, arrays.tables.shape[1] - 1)]
            rows = arrays.query_starts[sequences]
            yield self._part(rows, positions[group, None], firsts[group], tables, window)

    def _prompts(self, arrays: StepArrays, window: int) -> Iterator[_Part]:
        """Return prompts one by one, long ones in pieces."""
        queries = np.diff(arrays.query_starts)
        for sequence in np.flatnonzero(queries > 1):
            first_row, count = int(arrays.query_starts[sequence]), int(queries[sequence])
            past = int(arrays.contexts[sequence]) - count
            for start in range(0, count, _MAX_ROWS):
                stop = min(start + _MAX_ROWS, count)
                positions = np.arange(past + start, past + stop)
                first = self._first_blocks(positions[:1], window)
                last = int(positions[-1]) // self.block_size
                tables = arrays.tables[sequence, None, int(first[0]) : last + 1]
                rows = np.arange(first_row + start, first_row + stop)
                yield self._part(rows, positions[None], first, tables, window)

    def _first_blocks(self, positions: I64, window: int) -> I64:
        """Return the first block that a token at each position sees."""
        oldest = positions - window + 1 if window else np.zeros_like(positions)
        return np.maximum(oldest, 0) // self.block_size

    def _part(
        self, rows: I32 | I64, positions: I64, first_blocks: I64, tables: I32, window: int
    ) -> _Part:
        """Make the mask of queries at `positions`, [sequences, queries]; the tables of [sequences]
        begin with `first_blocks`."""
        first_keys = first_blocks * self.block_size
        ends = positions[:, -1] - first_keys + 1
        context = int(ends.max())
        keys = first_keys[:, None] + np.arange(context)
        distance = positions[:, :, None] - keys[:, None, :]
        seen = distance >= 0
        if window:
            seen &= distance < window
        mask = None
        causal = len(rows) == context and len(positions) == 1 and not first_keys[0]
        causal = causal and (not window or context <= window) and not self._soft_cap
        if not causal and not seen.all():
            mask = torch.zeros(seen.shape, dtype=self._dtype)
            mask = mask.masked_fill_(torch.from_numpy(~seen), -torch.inf).unsqueeze(1)
        return _Part(
            rows=_as_slice(rows),
            queries=positions.shape[1],
            blocks=torch.from_numpy(tables.astype(np.int64)),
            context=context,
            mask=mask,
            causal=causal,
        )


def _capped_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    soft_cap: float,
) -> torch.Tensor:
    """Compute attention with scores `soft_cap * tanh(score / soft_cap)`, which torch's does not."""
    # [sequences, key heads, query heads of each, queries, head_dim]
    grouped = queries.unflatten(1, (keys.shape[1], -1)).float()
    scores = grouped @ keys.float().transpose(-1, -2).unsqueeze(2) * (scale / soft_cap)
    scores = scores.tanh_().mul_(soft_cap)
    if mask is not None:
        scores = scores + mask.unsqueeze(2)
    mixed = scores.softmax(dim=-1) @ values.float().unsqueeze(2)
    return mixed.flatten(1, 2).to(queries.dtype)


def _similar(sizes: I64, most: int) -> Iterator[I64]:
    """Group indices: no size is more than twice another, no group of several exceeds `most`."""
    order = np.argsort(sizes, kind="stable")
    start = 0
    for index in range(1, len(order) + 1):
        count = index - start
        if index < len(order):
            size = sizes[order[index]]
            if size <= 2 * sizes[order[start]] and size * (count + 1) <= most:
                continue
        yield order[start:index]
        start = index


def _as_slice(rows: I32 | I64) -> slice | torch.Tensor:
    """Return consecutive rows as a slice, which copies nothing."""
    if rows[-1] - rows[0] == len(rows) - 1:
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return torch.from_numpy(rows.astype(np.int64))
