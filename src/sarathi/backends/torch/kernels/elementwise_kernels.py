"""Triton kernels for the operations between the matrix products; see `torch/torch_operations.py`.

Each kernel reads its inputs once, computes in float32, and rounds to the served precision at the
same places as the separate operations of torch do.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sarathi.backends.torch.attention_backend import LayerCache
from sarathi.backends.torch.torch_operations import HeadNorms, NormWeights, TokenRows
from sarathi.models.model_config import ModelConfig

_ROPE_PAIRS = 1024  # of queries or keys that one program computes: 8 for each of its threads
_GATE_TILE = 1024  # features of one program


class TritonElementwise:
    """See `PlainElementwise`: one launch for each operation."""

    def __init__(self, config: ModelConfig) -> None:
        self._eps = config.norm_eps
        self._activation = config.activation

    def norm(self, x: torch.Tensor, weights: NormWeights) -> torch.Tensor:
        normed = torch.empty_like(x)
        self._launch_norm(x, None, weights, normed, x)
        return normed

    def add_norm(
        self, residual: torch.Tensor, delta: torch.Tensor, weights: NormWeights
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total, normed = torch.empty_like(residual), torch.empty_like(residual)
        self._launch_norm(residual, delta, weights, normed, total)
        return total, normed

    def rope_and_cache(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        tokens: TokenRows,
        cache: LayerCache,
        head_norms: HeadNorms | None,
    ) -> torch.Tensor:
        num_tokens, num_heads, head_dim = query.shape
        num_kv_heads = key.shape[1]
        half_tile = triton.next_power_of_2(head_dim // 2)
        heads_tile = max(1, min(_ROPE_PAIRS // half_tile, triton.next_power_of_2(num_heads)))
        query_programs = triton.cdiv(num_heads, heads_tile)
        roped = query.new_empty(query.shape)
        grid = (num_tokens, query_programs + triton.cdiv(num_kv_heads, heads_tile))
        _rope_and_cache_kernel[grid](
            query, key, value, roped, cache.keys, cache.values,
            tokens.cos, tokens.sin, tokens.slots,
            tokens.cos if head_norms is None else head_norms.query.weight,
            tokens.cos if head_norms is None else head_norms.key.weight,
            query.stride(0), key.stride(0), value.stride(0), self._eps,
            NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HALF=head_dim // 2,
            QUERY_PROGRAMS=query_programs, HEADS_TILE=heads_tile, HALF_TILE=half_tile,
            HAS_NORMS=head_norms is not None,
            num_warps=4,
        )  # fmt: skip
        return roped

    def gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        num_tokens, inner = gate_up.shape[0], gate_up.shape[1] // 2
        output = gate_up.new_empty((num_tokens, inner))
        tile = min(_GATE_TILE, triton.next_power_of_2(inner))
        _gated_kernel[(num_tokens, triton.cdiv(inner, tile))](
            gate_up,
            output,
            gate_up.stride(0),
            INNER=inner,
            TILE=tile,
            ACTIVATION=self._activation,
            num_warps=4,
        )
        return output

    def _launch_norm(
        self,
        x: torch.Tensor,
        delta: torch.Tensor | None,
        weights: NormWeights,
        normed: torch.Tensor,
        total: torch.Tensor,
    ) -> None:
        num_tokens, features = x.shape
        tile = triton.next_power_of_2(features)
        _add_norm_kernel[(num_tokens,)](
            x,
            x if delta is None else delta,
            weights.weight,
            weights.weight if weights.bias is None else weights.bias,
            normed,
            total,
            self._eps,
            FEATURES=features,
            TILE=tile,
            HAS_DELTA=delta is not None,
            IS_LAYER_NORM=weights.bias is not None,
            num_warps=min(16, max(1, tile // 512)),
        )


@triton.jit
def _add_norm_kernel(
    x, delta,  # [tokens, FEATURES], contiguous, as are the results
    weight, bias,  # [FEATURES]
    normed, total, eps,
    FEATURES: tl.constexpr, TILE: tl.constexpr,
    HAS_DELTA: tl.constexpr, IS_LAYER_NORM: tl.constexpr,
):  # fmt: skip
    """Programs: one for each token, which keeps its row in registers."""
    row = tl.program_id(0).to(tl.int64) * FEATURES
    columns = tl.arange(0, TILE)
    mask = columns < FEATURES
    dtype = normed.dtype.element_ty
    values = tl.load(x + row + columns, mask=mask, other=0.0).to(tl.float32)
    if HAS_DELTA:
        values += tl.load(delta + row + columns, mask=mask, other=0.0).to(tl.float32)
        rounded = values.to(dtype)
        tl.store(total + row + columns, rounded, mask=mask)
        values = rounded.to(tl.float32)
    if IS_LAYER_NORM:
        values = tl.where(mask, values - tl.sum(values, 0) / FEATURES, 0.0)
    scale = tl.rsqrt(tl.sum(values * values, 0) / FEATURES + eps)
    output = values * scale * tl.load(weight + columns, mask=mask, other=0.0)
    if IS_LAYER_NORM:
        output += tl.load(bias + columns, mask=mask, other=0.0)
    tl.store(normed + row + columns, output.to(dtype), mask=mask)


@triton.jit
def _rope(
    source, target,  # of one token, its first head
    norm,  # [2 * HALF]
    cos, sin,  # [1, HALF_TILE]
    offsets, mask,  # [heads, HALF_TILE], of the first halves
    eps, HALF: tl.constexpr, HALF_TILE: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    first = tl.load(source + offsets, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + offsets + HALF, mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        dims = tl.arange(0, HALF_TILE)
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        scale = tl.rsqrt(squares / (2 * HALF) + eps)[:, None]
        first_weight = tl.load(norm + dims, mask=dims < HALF, other=0.0)[None, :]
        second_weight = tl.load(norm + HALF + dims, mask=dims < HALF, other=0.0)[None, :]
        dtype = source.dtype.element_ty
        first = (first * scale * first_weight).to(dtype).to(tl.float32)
        second = (second * scale * second_weight).to(dtype).to(tl.float32)
    dtype = target.dtype.element_ty
    tl.store(target + offsets, (first * cos - second * sin).to(dtype), mask=mask)
    tl.store(target + offsets + HALF, (second * cos + first * sin).to(dtype), mask=mask)


@triton.jit
def _rope_and_cache_kernel(
    query, key, value,  # [tokens, NUM_HEADS or NUM_KV_HEADS, 2 * HALF], rows a stride apart
    roped,  # as `query`, contiguous
    keys, values,  # [slots, NUM_KV_HEADS, 2 * HALF], contiguous
    cos, sin,  # [tokens, HALF]
    slots,  # [tokens]
    query_norm, key_norm,  # [2 * HALF]
    query_stride, key_stride, value_stride, eps,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr,
    QUERY_PROGRAMS: tl.constexpr, HEADS_TILE: tl.constexpr, HALF_TILE: tl.constexpr,
    HAS_NORMS: tl.constexpr,
):  # fmt: skip
    """Programs: (token, heads). The first ones of a token have query heads, the others key and
    value heads."""
    # In 64 bits: a cache, and a product of many tokens, may have more than 2^31 elements.
    token = tl.program_id(0).to(tl.int64)
    program = tl.program_id(1)
    dims = tl.arange(0, HALF_TILE)
    dims_mask = dims < HALF
    token_cos = tl.load(cos + token * HALF + dims, mask=dims_mask, other=0.0)[None, :]
    token_sin = tl.load(sin + token * HALF + dims, mask=dims_mask, other=0.0)[None, :]
    if program < QUERY_PROGRAMS:
        heads = program * HEADS_TILE + tl.arange(0, HEADS_TILE)
        offsets = (heads * (2 * HALF))[:, None] + dims[None, :]
        mask = (heads < NUM_HEADS)[:, None] & dims_mask[None, :]
        _rope(
            query + token * query_stride, roped + token * (NUM_HEADS * 2 * HALF), query_norm,
            token_cos, token_sin, offsets, mask, eps, HALF, HALF_TILE, HAS_NORMS,
        )  # fmt: skip
    else:
        heads = (program - QUERY_PROGRAMS) * HEADS_TILE + tl.arange(0, HEADS_TILE)
        offsets = (heads * (2 * HALF))[:, None] + dims[None, :]
        mask = (heads < NUM_KV_HEADS)[:, None] & dims_mask[None, :]
        row = tl.load(slots + token).to(tl.int64) * (NUM_KV_HEADS * 2 * HALF)
        _rope(
            key + token * key_stride, keys + row, key_norm,
            token_cos, token_sin, offsets, mask, eps, HALF, HALF_TILE, HAS_NORMS,
        )  # fmt: skip
        source, target = value + token * value_stride, values + row
        tl.store(target + offsets, tl.load(source + offsets, mask=mask), mask=mask)
        tl.store(target + offsets + HALF, tl.load(source + offsets + HALF, mask=mask), mask=mask)


@triton.jit
def _gated_kernel(
    gate_up,  # [tokens, 2 * INNER], rows `stride` apart
    output,  # [tokens, INNER], contiguous
    stride,
    INNER: tl.constexpr,
    TILE: tl.constexpr,
    ACTIVATION: tl.constexpr,  # as in the model's configuration
):
    """Programs: (token, tile of features)."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = columns < INNER
    source = gate_up + token * stride + columns
    gate = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(source + INNER, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION == "gelu":
        activated = 0.5 * gate * (1 + tl.erf(gate * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), u = sqrt(2 / pi) * (x + 0.044715 x^3)
        doubled = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
        activated = gate / (1 + tl.exp(-doubled))
    else:
        activated = gate / (1 + tl.exp(-gate))
    dtype = output.dtype.element_ty
    activated = activated.to(dtype).to(tl.float32)
    tl.store(output + token * INNER + columns, (activated * up).to(dtype), mask=mask)
