"""Attention over the paged KV cache: one launch computes a batch of prefills and decodes.

Online softmax over tiles (FlashAttention-2; Dao, 2023) with the keys of long contexts split over
programs (flash-decoding). What a program computes is in its work item; `attention_plan` makes
the items. Scores are kept as powers of 2, since exp2 is what the hardware has.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sarathi.backends.torch.attention_plan import AttentionShape, AttentionWork

_MERGED_AT_ONCE = 16  # splits that a program of the merge reads at a time


class Workspace:
    """Partial results of split keys. Layers run one after the other, so one serves all."""

    def __init__(self, num_rows: int, shape: AttentionShape, device: torch.device) -> None:
        # [rows, num_heads, head_dim], float32
        self.output = torch.empty((num_rows, shape.num_heads, shape.head_dim), device=device)
        # [rows, num_heads], float32: log2 of the sum of exponentiated scores
        self.lse = torch.empty((num_rows, shape.num_heads), device=device)


def launch_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    work: AttentionWork,
    items: torch.Tensor,
    merges: torch.Tensor,
    workspace: Workspace,
    shape: AttentionShape,
    *,
    scale: float | None = None,
    soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute causal attention of the new tokens over the KV cache, which has them already.

    Args:
        query: [tokens, num_heads, head_dim], contiguous.
        keys, values: [blocks, block_size, num_kv_heads, head_dim], contiguous.
        tables: block ids of each sequence, [sequences, width], int32.
        work: what `items` and `merges` hold; its own arrays are on the host.
        items, merges: those of the work, or of another with the same shapes.
        workspace: has the rows that the work needs.
        scale: of the scores; None for head_dim ** -0.5.
        soft_cap: scores become soft_cap * tanh(score / soft_cap); 0 for none.
        sinks: [num_heads]; a score of each head that is in the softmax and has no value.

    Returns:
        [tokens, num_heads, head_dim].
    """
    output = torch.empty_like(query)
    config = work.config
    head_dim_tile = max(16, triton.next_power_of_2(shape.head_dim))
    options = {} if config.max_registers is None else {"maxnreg": config.max_registers}
    _attention[(shape.num_kv_heads * len(items),)](
        query, keys, values, output, tables, items,
        workspace.output, workspace.lse, output if sinks is None else sinks,
        tables.shape[1], work.window, shape.head_dim**-0.5 if scale is None else scale, soft_cap,
        NUM_HEADS=shape.num_heads, NUM_KV_HEADS=shape.num_kv_heads,
        HEAD_DIM=shape.head_dim, HEAD_DIM_TILE=head_dim_tile, BLOCK_SIZE=shape.block_size,
        PREFILL_ROWS=config.prefill.rows if work.has_prefill else 0,
        PREFILL_KEYS=config.prefill.keys, PREFILL_STAGES=config.prefill.num_stages,
        DECODE_ROWS=config.decode.rows if work.has_decode else 0,
        DECODE_KEYS=config.decode.keys, DECODE_STAGES=config.decode.num_stages,
        HAS_WINDOW=work.window > 0, HAS_SOFT_CAP=soft_cap > 0, HAS_SINKS=sinks is not None,
        num_warps=config.num_warps,
        enable_fp_fusion=True,  # explicit, since the default differs between versions
        **options,
    )  # fmt: skip
    if len(merges):
        _merge_splits[(shape.num_heads * len(merges),)](
            workspace.output,
            workspace.lse,
            output,
            merges,
            NUM_HEADS=shape.num_heads,
            HEAD_DIM=shape.head_dim,
            HEAD_DIM_TILE=head_dim_tile,
            SPLITS=_MERGED_AT_ONCE,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return output


@triton.jit
def _load_block_ids(table, first, end, BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr):
    """Block ids of the keys from `first` on: a scalar where they share a block, else [KEYS].

    Past `end` the table may end: block 0 replaces what is missing.
    """
    if BLOCK_SIZE % KEYS == 0:
        return tl.load(table + first // BLOCK_SIZE, mask=first < end, other=0)
    else:  # noqa: RET505 -- decided when the kernel is compiled
        position = first + tl.arange(0, KEYS)
        return tl.load(table + position // BLOCK_SIZE, mask=position < end, other=0)


@triton.jit
def _accumulate(
    acc,  # [ROWS, HEAD_DIM_TILE], float32: weighted values so far
    total,  # [ROWS]: sum of the weights
    peak,  # [ROWS]: largest score, which weights are relative to
    query,  # [ROWS, HEAD_DIM_TILE]
    keys, values,  # pointers to this key head
    table,  # pointer to the blocks of this sequence
    positions,  # [ROWS]: of the tokens
    start, end, window, scale, soft_cap,
    NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
    MASKED: tl.constexpr,  # False where every row sees every key, and all KEYS of each iteration
    HAS_WINDOW: tl.constexpr, HAS_SOFT_CAP: tl.constexpr,
):  # fmt: skip
    """Online softmax over the keys from `start`, a multiple of KEYS, to `end`."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    key_offsets = tl.arange(0, KEYS)
    dims = tl.arange(0, HEAD_DIM_TILE)
    # Block ids are loaded one iteration ahead. A load that depends on a load of the same
    # iteration would be spread over stages of the software pipeline and leave fewer to the keys.
    next_block = _load_block_ids(table, start, end, BLOCK_SIZE, KEYS)
    for first in tl.range(start, end, KEYS, num_stages=STAGES):
        position = first + key_offsets
        block = next_block.to(tl.int64)  # a cache may have more than 2^31 elements
        next_block = _load_block_ids(table, first + KEYS, end, BLOCK_SIZE, KEYS)
        if BLOCK_SIZE % KEYS == 0:
            base = (block * BLOCK_SIZE + first % BLOCK_SIZE) * (NUM_KV_HEADS * HEAD_DIM)
            offsets = (key_offsets * (NUM_KV_HEADS * HEAD_DIM))[:, None] + dims[None, :]
        else:
            base = 0
            slots = block * BLOCK_SIZE + position % BLOCK_SIZE
            offsets = (slots * (NUM_KV_HEADS * HEAD_DIM))[:, None] + dims[None, :]

        # Keys past the end need no mask: their scores are replaced.
        if HEAD_DIM == HEAD_DIM_TILE:
            key = tl.load(keys + base + offsets)
        else:
            key = tl.load(keys + base + offsets, mask=dims[None, :] < HEAD_DIM, other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee")
        if HAS_SOFT_CAP:
            # tanh(x) = 1 - 2 / (exp(2x) + 1)
            grown = tl.exp2(score * (scale * 2 * LOG2_E / soft_cap))
            score = soft_cap * (1 - 2 / (grown + 1)) * LOG2_E
        else:
            score *= scale * LOG2_E
        if MASKED:
            visible = position[None, :] <= positions[:, None]
            if HAS_WINDOW:
                visible &= position[None, :] > positions[:, None] - window
            score = tl.where(visible, score, float("-inf"))

        new_peak = tl.maximum(peak, tl.max(score, 1))
        weights = tl.exp2(score - new_peak[:, None])
        rescale = tl.exp2(peak - new_peak)
        total = total * rescale + tl.sum(weights, 1)
        acc *= rescale[:, None]
        # Slots past the end may hold anything. A weight of 0 would not stop NaN.
        if MASKED or HEAD_DIM != HEAD_DIM_TILE:
            mask = (position < end)[:, None] & (dims < HEAD_DIM)[None, :]
            value = tl.load(values + base + offsets, mask=mask, other=0.0)
        else:
            value = tl.load(values + base + offsets)
        acc = tl.dot(weights.to(value.dtype), value, acc, input_precision="ieee")
        peak = new_peak
    return acc, total, peak


@triton.jit
def _attention_tile(
    query, keys, values, output, tables,
    item,  # pointer to the work item
    kv_head, partial_output, partial_lse, sinks, table_width, window, scale, soft_cap,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD_DIM_TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
    HAS_UNMASKED_LOOP: tl.constexpr,  # a second loop without masks, which long prefills repay
    HAS_WINDOW: tl.constexpr, HAS_SOFT_CAP: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """One work item for one key head."""
    GROUP_SIZE: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    # The columns of `attention_plan`: a kernel cannot read constants of other modules.
    first_token = tl.load(item)
    num_tokens = tl.load(item + 1)
    first_position = tl.load(item + 2)
    table = tables + tl.load(item + 3).to(tl.int64) * table_width
    kv_start = tl.load(item + 4)
    kv_end = tl.load(item + 5)
    partial_row = tl.load(item + 6)

    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_DIM_TILE)
    token = rows // GROUP_SIZE  # within the tile
    head = kv_head * GROUP_SIZE + rows % GROUP_SIZE
    is_used = token < num_tokens
    mask = is_used[:, None] & (dims < HEAD_DIM)[None, :]
    offsets = ((first_token + token).to(tl.int64) * NUM_HEADS + head) * HEAD_DIM
    q = tl.load(query + offsets[:, None] + dims[None, :], mask=mask, other=0.0)

    acc = tl.zeros([ROWS, HEAD_DIM_TILE], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    # Finite: rows that have seen no key yet would otherwise compute -inf - -inf.
    peak = tl.full([ROWS], -1e30, tl.float32)
    if HAS_SINKS:
        # The sink counts once per row: in the split that has the last key.
        if kv_end == first_position + num_tokens:
            sink = tl.load(sinks + head, mask=is_used, other=0.0).to(tl.float32)
            peak = sink * 1.4426950408889634
            total = tl.full([ROWS], 1.0, tl.float32)

    positions = first_position + token
    keys += kv_head * HEAD_DIM
    values += kv_head * HEAD_DIM
    masked_start = kv_start
    if HAS_UNMASKED_LOOP and not HAS_WINDOW:
        # All rows see the keys up to the first token's own.
        masked_start = tl.minimum((first_position + 1) // KEYS * KEYS, kv_end)
        masked_start = tl.maximum(masked_start, kv_start)
        acc, total, peak = _accumulate(
            acc, total, peak, q, keys, values, table, positions,
            kv_start, masked_start, window, scale, soft_cap,
            NUM_KV_HEADS, HEAD_DIM, HEAD_DIM_TILE, BLOCK_SIZE, KEYS, STAGES,
            False, False, HAS_SOFT_CAP,
        )  # fmt: skip
    acc, total, peak = _accumulate(
        acc, total, peak, q, keys, values, table, positions,
        masked_start, kv_end, window, scale, soft_cap,
        NUM_KV_HEADS, HEAD_DIM, HEAD_DIM_TILE, BLOCK_SIZE, KEYS, STAGES,
        True, HAS_WINDOW, HAS_SOFT_CAP,
    )  # fmt: skip

    # A row that sees none of this split's keys gets 0, and no weight in the merge: its peak
    # is -1e30.
    total = tl.where(total == 0.0, 1.0, total)
    acc *= (1.0 / total)[:, None]
    if partial_row < 0:
        tl.store(
            output + offsets[:, None] + dims[None, :], acc.to(output.dtype.element_ty), mask=mask
        )
    else:
        partial = (partial_row + token).to(tl.int64) * NUM_HEADS + head
        tl.store(partial_output + (partial * HEAD_DIM)[:, None] + dims[None, :], acc, mask=mask)
        tl.store(partial_lse + partial, peak + tl.log2(total), mask=is_used)


# Integers that differ from step to step must not cause specialised kernels by divisibility.
@triton.jit(do_not_specialize=["table_width", "window"])
def _attention(
    query, keys, values, output, tables, items,
    partial_output, partial_lse, sinks, table_width, window, scale, soft_cap,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD_DIM_TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    # 0 rows where no item has this kind: its code is left out.
    PREFILL_ROWS: tl.constexpr, PREFILL_KEYS: tl.constexpr, PREFILL_STAGES: tl.constexpr,
    DECODE_ROWS: tl.constexpr, DECODE_KEYS: tl.constexpr, DECODE_STAGES: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFT_CAP: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """One program per work item and key head. The key heads of an item run side by side, as
    they are next to each other in the cache."""
    kv_head = tl.program_id(0) % NUM_KV_HEADS
    item = items + tl.program_id(0) // NUM_KV_HEADS * 8
    kind = tl.load(item + 7)
    if PREFILL_ROWS > 0:
        if kind == 1:
            _attention_tile(
                query, keys, values, output, tables, item, kv_head,
                partial_output, partial_lse, sinks, table_width, window, scale, soft_cap,
                NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, HEAD_DIM_TILE, BLOCK_SIZE,
                PREFILL_ROWS, PREFILL_KEYS, PREFILL_STAGES, True,
                HAS_WINDOW, HAS_SOFT_CAP, HAS_SINKS,
            )  # fmt: skip
    if DECODE_ROWS > 0:
        if kind == 2:
            _attention_tile(
                query, keys, values, output, tables, item, kv_head,
                partial_output, partial_lse, sinks, table_width, window, scale, soft_cap,
                NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, HEAD_DIM_TILE, BLOCK_SIZE,
                DECODE_ROWS, DECODE_KEYS, DECODE_STAGES, False,
                HAS_WINDOW, HAS_SOFT_CAP, HAS_SINKS,
            )  # fmt: skip


@triton.jit
def _merge_splits(
    partial_output, partial_lse, output, merges,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_TILE: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """One program per merge and head: the partial results of a token, weighted by their sums."""
    head = tl.program_id(0) % NUM_HEADS
    merge = merges + tl.program_id(0) // NUM_HEADS * 4
    num_splits = tl.load(merge + 3)
    if num_splits > 0:
        token = tl.load(merge).to(tl.int64)
        first_row = tl.load(merge + 1).to(tl.int64)
        stride = tl.load(merge + 2)
        splits = tl.arange(0, SPLITS)
        dims = tl.arange(0, HEAD_DIM_TILE)
        acc = tl.zeros([HEAD_DIM_TILE], tl.float32)
        total = 0.0
        peak = -1e30
        for first in tl.range(0, num_splits, SPLITS):
            is_split = first + splits < num_splits
            rows = (first_row + (first + splits) * stride) * NUM_HEADS + head
            lse = tl.load(partial_lse + rows, mask=is_split, other=float("-inf"))
            partial = tl.load(
                partial_output + (rows * HEAD_DIM)[:, None] + dims[None, :],
                mask=is_split[:, None] & (dims < HEAD_DIM)[None, :],
                other=0.0,
            )
            new_peak = tl.maximum(peak, tl.max(lse, 0))
            weights = tl.exp2(lse - new_peak)
            rescale = tl.exp2(peak - new_peak)
            total = total * rescale + tl.sum(weights, 0)
            acc = acc * rescale + tl.sum(partial * weights[:, None], 0)
            peak = new_peak
        tl.store(
            output + (token * NUM_HEADS + head) * HEAD_DIM + dims,
            (acc / total).to(output.dtype.element_ty),
            mask=dims < HEAD_DIM,
        )
