"""Fused elementwise kernels against the same formulas in float64, rounded at the same places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sarathi.backends.torch.attention_backend import LayerCache
from sarathi.backends.torch.kernels.elementwise_kernels import TritonElementwise
from sarathi.backends.torch.torch_operations import (
    ACTIVATIONS,
    HeadNorms,
    NormWeights,
    TokenRows,
)
from sarathi.models.model_config import ModelConfig

EPS = 1e-5
# A unit or two in the last place, since sums are rounded differently, and the interpreter of
# Triton 3.6 truncates where it converts to bfloat16. Rope subtracts what was rounded: hence atol.
TOLERANCES = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 3e-2},
}
EXACT = {"rtol": 0.0, "atol": 0.0}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


def kernels(**changes: object) -> TritonElementwise:
    """The kernels of a model of which only the eps and the activation matter."""
    sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "max_position"), 8)
    heads = {"num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": 2}
    config = ModelConfig(
        architecture="test",
        norm_eps=EPS,
        inv_freq=(1.0,),
        sliding_windows=(0,),
        **{**sizes, **heads, **changes},  # type: ignore[arg-type]
    )
    return TritonElementwise(config)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """In float64, rounded to the type of `x`."""
    wide = x.double()
    if bias is not None:
        wide = wide - wide.mean(-1, keepdim=True)
    wide = wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()
    return (wide if bias is None else wide + bias.double()).to(x.dtype)


@DTYPES
@pytest.mark.parametrize(("kind", "features"), [("rms", 64), ("rms", 200), ("layer", 200)])
def test_norm_with_and_without_an_addition(
    kind: str, features: int, dtype: torch.dtype, device: torch.device
) -> None:
    # Off centre, as LayerNorm must notice.
    residual, delta = ((randn(5, features, seed=i) + i).to(device, dtype) for i in range(2))
    weight = randn(features, seed=2).to(device)
    bias = randn(features, seed=3).to(device) if kind == "layer" else None
    weights = NormWeights(weight, bias)
    total, normed = kernels().add_norm(residual, delta, weights)
    tolerance = TOLERANCES[dtype] if dtype is torch.bfloat16 else EXACT
    torch.testing.assert_close(total, residual + delta, **tolerance)
    torch.testing.assert_close(normed, norm(total, weight, bias), **TOLERANCES[dtype])
    found = kernels().norm(residual, weights)
    torch.testing.assert_close(found, norm(residual, weight, bias), **TOLERANCES[dtype])


def rope(x: torch.Tensor, angles: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    wide = (x if weight is None else norm(x, weight, None)).double()
    first, second = wide.chunk(2, dim=-1)
    cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


@DTYPES
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "has_norms"),
    # The last two take several programs a token.
    [
        (6, 2, 64, True),
        (5, 1, 80, False),
        (5, 1, 80, True),
        (20, 4, 128, False),
        (20, 4, 128, True),
    ],
)
def test_rope_and_cache(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    has_norms: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    counts = (num_heads, num_kv_heads, num_kv_heads)
    joined = randn(3, sum(counts) * head_dim).to(device, dtype)
    query, key, value = joined.unflatten(-1, (-1, head_dim)).split(counts, dim=1)
    angles = 10 * randn(3, head_dim // 2, seed=1).double().to(device)
    slots = torch.tensor([9, 2, 14], device=device)
    shape = (4, 4, num_kv_heads, head_dim)
    cache = LayerCache(
        *(torch.full(shape, torch.nan, dtype=dtype, device=device) for _ in range(2))
    )
    weights = randn(2, head_dim, seed=2).to(device) if has_norms else (None, None)
    head_norms = HeadNorms(*map(NormWeights, weights)) if has_norms else None

    tokens = TokenRows(angles.cos().float(), angles.sin().float(), slots)
    found = kernels().rope_and_cache(query, key, value, tokens, cache, head_norms)

    assert found.is_contiguous()
    torch.testing.assert_close(found, rope(query, angles, weights[0]), **TOLERANCES[dtype])
    keys, values = cache.keys.flatten(0, 1), cache.values.flatten(0, 1)
    torch.testing.assert_close(keys[slots], rope(key, angles, weights[1]), **TOLERANCES[dtype])
    assert torch.equal(values[slots], value)
    others = torch.ones(len(keys), dtype=torch.bool, device=device)
    others[slots] = False
    assert keys[others].isnan().all()
    assert values[others].isnan().all()


def test_a_cache_of_more_elements_than_32_bits_count(device: torch.device, tmp_path: Path) -> None:
    head_dim, block_size = 64, 32
    slot = 2**31 // head_dim + 5
    shape = (slot // block_size + 1, block_size, 1, head_dim)
    if device.type == "cuda":
        blocks = torch.empty(shape, dtype=torch.float16, device=device)
    else:  # a sparse file: nothing of it is in memory but what is touched
        path = tmp_path / "cache"
        blocks = torch.from_numpy(np.memmap(path, np.float16, "w+", shape=shape))
    query, key, value = (randn(1, 1, head_dim, seed=i).half().to(device) for i in range(3))
    zeros = torch.zeros(1, head_dim // 2, device=device)
    tokens = TokenRows(zeros + 1, zeros, torch.tensor([slot], device=device))
    assert blocks.numel() > 2**31
    # Keys and values in one cache: the values are written last.
    kernels().rope_and_cache(query, key, value, tokens, LayerCache(blocks, blocks), None)
    assert torch.equal(blocks.flatten(0, 1)[slot], value[0])


@DTYPES
@pytest.mark.parametrize(
    ("activation", "inner"),
    [("silu", 1100), ("gelu", 1100), ("gelu", 33), ("gelu_tanh", 33)],
)
def test_gate(activation: str, inner: int, dtype: torch.dtype, device: torch.device) -> None:
    gate_up = (4 * randn(5, 2 * inner)).to(device, dtype)
    gate, up = gate_up.double().chunk(2, dim=-1)
    activated = ACTIVATIONS[activation](gate).to(dtype).double()
    found = kernels(activation=activation).gated(gate_up)
    torch.testing.assert_close(found, (activated * up).to(dtype), **TOLERANCES[dtype])


def test_no_rows(device: torch.device) -> None:
    """As of a step that samples nothing."""
    weights = NormWeights(torch.ones(8, device=device))
    assert kernels().norm(torch.empty(0, 8, device=device), weights).shape == (0, 8)
