"""Work items of the attention kernels: how the host divides a batch, once per step and window.

A work item is a tile of consecutive new tokens of one sequence times a range of its keys. One
program computes an item for one key head and all query heads that share it, so that keys and
values are read once per group. There are two kinds of tiles: *prefill* tiles have many rows and
are bound by compute; *decode* tiles have few and are bound by memory. A row is a (token, query
head) pair. A sequence whose new tokens fit into one decode tile gets one, be it a decode or a
short chunk, so the kind of tile depends on nothing but the sequence itself.

Keys are split where there are too few items to occupy the device (flash-decoding; Dao et al.,
2023). Each split leaves a partial result, and a second kernel merges these.

Everything here is numpy; the kernels are in `kernels.attention_kernel`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sarathi.backends.step import I32, I64

# One block holds the keys of one loop iteration (64, or 32 twice), so that an iteration reads one
# entry of the block table. Larger blocks would only waste more of each sequence's last one.
BLOCK_SIZE = 64

LARGEST_HEAD = 256
HEAD_MULTIPLE = 8  # rows of the cache begin at multiples of 16 bytes in half precision

# Columns of a work item.
ITEM_COLUMNS = 8
FIRST_TOKEN, NUM_TOKENS, POSITION, SEQUENCE, KV_START, KV_END, PARTIAL_ROW, KIND = range(8)
PREFILL, DECODE = 1, 2  # kinds; 0 is padding, which computes nothing
# Columns of a merge: the token, its first partial row, the distance between its partial rows,
# and how many there are. With no splits it is padding.
MERGE_COLUMNS = 4
TOKEN, FIRST_PARTIAL_ROW, PARTIAL_STRIDE, NUM_SPLITS = range(4)

_MIN_SPLIT = 256  # keys; fewer are not worth a separate decode item
_PREFILL_SPLIT = 4  # times as many for a prefill item, which has more rows to merge
_FIXED_SPLIT = 512  # keys of a split in deterministic mode, or more for contexts so long
_FIXED_SPLITS = 16  # that a sequence would have more splits than this


@dataclass(frozen=True)
class AttentionShape:
    """The attention of one rank."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int = BLOCK_SIZE

    @property
    def group_size(self) -> int:
        """Query heads that share a key head."""
        return self.num_heads // self.num_kv_heads


@dataclass(frozen=True)
class Tile:
    """The size of a tile, and how its loop over keys is pipelined."""

    rows: int  # (token, query head) pairs; a power of 2, 16 at least
    keys: int  # of one loop iteration; likewise
    num_stages: int  # software pipelining: iterations whose loads are in flight, and one


@dataclass(frozen=True)
class KernelConfig:
    """What a launch is compiled with."""

    prefill: Tile
    decode: Tile
    num_warps: int
    max_registers: int | None  # per thread; None for as many as the compiler wants
    decodes_per_sm: int  # decode items that a multiprocessor holds at a time

    @property
    def key_alignment(self) -> int:
        """Ranges of keys begin at multiples of it."""
        return max(self.prefill.keys, self.decode.keys)


def select_config(shape: AttentionShape, itemsize: int, *, decode_only: bool) -> KernelConfig:
    """Choose tiles that compile to few spilled registers, on compute capability 9.0 to none.

    Shared memory stays below the 99 KB that a program has on capabilities 8.6, 8.9 and 12.0.

    Args:
        itemsize: bytes of an element of queries, keys and values.
        decode_only: for launches without prefill tiles, which would otherwise determine how many
            registers and warps every program has.
    """
    decode_rows = max(16, 1 << (shape.group_size - 1).bit_length())  # the next power of 2
    if itemsize == 4:
        # Products in full float32 run on the ordinary cores, with operands in registers. The
        # tiles of half precision would spill 60 KB of them.
        prefill = Tile(64 if shape.head_dim <= 64 else 32, keys=16, num_stages=2)
        decode = Tile(decode_rows, keys=16, num_stages=2)
    elif shape.head_dim <= 128:
        prefill = Tile(128, keys=64, num_stages=2)
        decode = Tile(decode_rows, keys=64, num_stages=3)
    else:
        prefill = Tile(64, keys=32, num_stages=2)
        decode = Tile(decode_rows, keys=32, num_stages=3)
    prefill = replace(prefill, rows=max(prefill.rows, decode_rows))

    if decode_only and decode_rows < 64:
        return KernelConfig(prefill, decode, num_warps=4, max_registers=None, decodes_per_sm=3)
    if itemsize < 4 and shape.head_dim <= 64:
        # With at most 128 registers two programs share a multiprocessor. Larger heads need more:
        # the compiler would then wait for every single matrix instruction.
        return KernelConfig(prefill, decode, num_warps=8, max_registers=128, decodes_per_sm=2)
    if itemsize < 4 and prefill.rows == 64:
        return KernelConfig(prefill, decode, num_warps=4, max_registers=None, decodes_per_sm=2)
    return KernelConfig(prefill, decode, num_warps=8, max_registers=None, decodes_per_sm=1)


@dataclass(frozen=True)
class AttentionWork:
    """A step's attention for one window, on the host."""

    window: int
    config: KernelConfig
    items: I32  # [N, ITEM_COLUMNS]
    merges: I32  # [M, MERGE_COLUMNS], a row for each token whose keys are split
    num_partial_rows: int  # (split, token) pairs
    has_prefill: bool  # whether the kernel is compiled with this kind of tile
    has_decode: bool


@dataclass(frozen=True)
class AttentionPlanner:
    """Divides steps into work items, for one model on one device."""

    shape: AttentionShape
    config: KernelConfig  # for steps with prefill tiles
    decode_config: KernelConfig  # for steps without
    num_sms: int  # multiprocessors to occupy
    fixed_split: int | None = None  # keys of a decode split; None to choose by the step

    @staticmethod
    def make(
        shape: AttentionShape,
        itemsize: int,
        num_sms: int,
        *,
        deterministic: bool = False,
        max_context: int = 0,
    ) -> AttentionPlanner:
        """Choose tiles and splits.

        Args:
            itemsize: bytes of an element of queries, keys and values.
            deterministic: whether a sequence's output must not depend on its batch:
                one kernel for all steps, and splits that depend on nothing but its own length.
            max_context: tokens of the longest sequence to expect, for `deterministic`.
        """
        config = select_config(shape, itemsize, decode_only=False)
        if not deterministic:
            decode_config = select_config(shape, itemsize, decode_only=True)
            return AttentionPlanner(shape, config, decode_config, num_sms)
        split = max(_FIXED_SPLIT, -(-max_context // _FIXED_SPLITS))
        split = -(-split // config.key_alignment) * config.key_alignment
        return AttentionPlanner(shape, config, config, num_sms, fixed_split=split)

    def plan(self, query_starts: I32, contexts: I32, window: int) -> AttentionWork:
        """Divide a step into work items.

        Args:
            query_starts: where each sequence's new tokens begin, and the end, [B + 1].
            contexts: tokens of each sequence, cached and new, [B].
            window: tokens that each one sees, itself included; 0 for all before it.
        """
        group = self.shape.group_size
        starts = query_starts.astype(np.int64)
        queries = np.diff(starts)
        is_decode = queries * group <= self.config.decode.rows
        config = self.decode_config if is_decode.all() else self.config

        # Tiles of tokens: each sequence's new tokens in pieces that fit the rows of its tile.
        capacity = np.where(is_decode, config.decode.rows // group, config.prefill.rows // group)
        sequence, index = _enumerate(-(-queries // capacity))
        first = index * capacity[sequence]
        num_tokens = np.minimum(capacity[sequence], queries[sequence] - first)
        position = contexts[sequence] - queries[sequence] + first
        kv_end = position + num_tokens
        kv_start = np.zeros_like(kv_end)
        if window:
            align = config.key_alignment
            kv_start = np.maximum(position - window + 1, 0) // align * align
        kind = np.where(is_decode[sequence], DECODE, PREFILL)

        # Items: the keys of each tile in splits.
        size = self._split_sizes(kv_end - kv_start, kind, config)
        tile, split = _enumerate(-(-(kv_end - kv_start) // size))
        counts = np.bincount(tile, minlength=len(kv_end))
        # Partial rows of a tile: all its tokens of the first split, then of the second, ...
        rows = np.where(counts > 1, counts * num_tokens, 0)
        first_row = np.cumsum(rows) - rows
        items = np.zeros((len(tile), ITEM_COLUMNS), np.int32)
        items[:, FIRST_TOKEN] = (starts[sequence] + first)[tile]
        items[:, NUM_TOKENS] = num_tokens[tile]
        items[:, POSITION] = position[tile]
        items[:, SEQUENCE] = sequence[tile]
        items[:, KV_START] = kv_start[tile] + split * size[tile]
        items[:, KV_END] = np.minimum(items[:, KV_START] + size[tile], kv_end[tile])
        items[:, PARTIAL_ROW] = np.where(
            counts[tile] > 1, first_row[tile] + split * num_tokens[tile], -1
        )
        items[:, KIND] = kind[tile]

        split_tiles = np.flatnonzero(counts > 1)
        owner, offset = _enumerate(num_tokens[split_tiles])
        owner = split_tiles[owner]
        merges = np.zeros((len(owner), MERGE_COLUMNS), np.int32)
        merges[:, TOKEN] = (starts[sequence] + first)[owner] + offset
        merges[:, FIRST_PARTIAL_ROW] = first_row[owner] + offset
        merges[:, PARTIAL_STRIDE] = num_tokens[owner]
        merges[:, NUM_SPLITS] = counts[owner]
        return AttentionWork(
            window=window,
            config=config,
            items=items[_launch_order(items)],
            merges=merges,
            num_partial_rows=int(rows.sum()),
            # In deterministic mode the very same kernel computes every step.
            has_prefill=self.fixed_split is not None or not is_decode.all(),
            has_decode=self.fixed_split is not None or bool(is_decode.any()),
        )

    def plan_decodes(self, contexts: I32, window: int, max_context: int) -> AttentionWork:
        """Divide a step with one new token per sequence, padded to the size of a CUDA graph.

        The shapes depend on the number of sequences and on `max_context`, the tokens that one can
        have, but not on their contexts.
        """
        work = self.plan(np.arange(len(contexts) + 1, dtype=np.int32), contexts, window)
        items = np.zeros((self.max_items(len(contexts), max_context), ITEM_COLUMNS), np.int32)
        merges = np.zeros((len(contexts), MERGE_COLUMNS), np.int32)
        items[: len(work.items)] = work.items
        merges[: len(work.merges)] = work.merges
        num_partial_rows = self.max_partial_rows(len(contexts), max_context)
        return replace(work, items=items, merges=merges, num_partial_rows=num_partial_rows)

    def max_items(self, num_decodes: int, max_context: int) -> int:
        """Bound the items of any step of `num_decodes` decodes."""
        if self.fixed_split is not None:
            return num_decodes * max(1, -(-max_context // self.fixed_split))
        return num_decodes + self._wanted_splits(DECODE, self.decode_config)

    def max_partial_rows(self, num_decodes: int, max_context: int) -> int:
        """Bound the partial rows of any step of `num_decodes` decodes."""
        max_items = self.max_items(num_decodes, max_context)
        # Only sequences with two items or more have any.
        return min(max_items, 2 * (max_items - num_decodes))

    def _wanted_splits(self, kind: int, config: KernelConfig) -> int:
        """Return the number of equally long items that occupy the device."""
        per_sm = config.decodes_per_sm if kind == DECODE else 1
        return max(1, self.num_sms * per_sm // self.shape.num_kv_heads)

    def _split_sizes(self, num_keys: I64, kind: I64, config: KernelConfig) -> I64:
        """Return the keys of a split of each tile."""
        align = config.key_alignment
        if self.fixed_split is not None:
            # Prefill tiles are not split: partial results of all their rows would cost more.
            return np.where(kind == DECODE, self.fixed_split, np.maximum(num_keys, 1))
        sizes = np.empty_like(num_keys)
        for each, min_split in ((PREFILL, _PREFILL_SPLIT * _MIN_SPLIT), (DECODE, _MIN_SPLIT)):
            chosen = kind == each
            wanted = self._wanted_splits(each, config)
            sizes[chosen] = _even_splits(num_keys[chosen], wanted, min_split, align)
        return sizes


def _even_splits(num_keys: I64, wanted: int, min_split: int, align: int) -> I64:
    """Return the keys of a split of each tile, of one kind: about the same for all tiles.

    There are at most `wanted` splits more than tiles.
    """
    units = -(-num_keys // align)
    size = max(-(-min_split // align), -(-int(units.sum()) // wanted))
    # Rounded to nearest: what is little longer than one split is not worth two. The sum of
    # the counts is at most the number of tiles plus sum(units) / size, which is at most `wanted`.
    counts = np.maximum(1, (2 * units + size) // (2 * size))
    sizes: I64 = np.maximum(-(-units // counts), 1) * align
    return sizes


def _launch_order(items: I32) -> npt.NDArray[np.intp]:
    """Order long items first, so that none remains at the end, and the kinds interleaved, so that
    items bound by compute and by memory run at the same time."""
    num_keys = items[:, KV_END] - items[:, KV_START]
    rank = np.zeros(len(items))
    for kind in (PREFILL, DECODE):
        chosen = np.flatnonzero(items[:, KIND] == kind)
        chosen = chosen[np.argsort(-num_keys[chosen], kind="stable")]
        rank[chosen] = (np.arange(len(chosen)) + 0.5) / max(1, len(chosen))
    return np.argsort(rank, kind="stable")


def _enumerate(counts: I64) -> tuple[I64, I64]:
    """Return all pairs (i, j) with j < counts[i], as two arrays."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
