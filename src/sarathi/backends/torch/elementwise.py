"""The operations between the matrix products: norms, rotary embedding, gates.

They move much data and compute little, so on GPUs they are fused into kernels
(`kernels/elementwise_kernels.py`); `PlainElementwise` composes them of torch's operations. Both
compute in float32 and round to the served precision at the same places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from sarathi.backends.torch.attention_backend import LayerCache
from sarathi.backends.torch.kernels import uses_triton
from sarathi.models.model_config import ModelConfig

ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
}


@dataclass(frozen=True)
class NormWeights:
    """Scale and bias of a norm, [features] each, in float32."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None  # of a LayerNorm; an RMSNorm has none


@dataclass(frozen=True)
class HeadNorms:
    """RMSNorms of every query head and every key head (Qwen3), with weights [head_dim]."""

    query: NormWeights
    key: NormWeights


@dataclass(frozen=True)
class TokenRows:
    """Per-token inputs of all layers in addition to the hidden states."""

    cos: torch.Tensor  # [tokens, head_dim / 2], float32, of the rotary embedding's angles
    sin: torch.Tensor
    slots: torch.Tensor  # [tokens], block * block_size + offset in the block


class ElementwiseKernels(Protocol):
    """Elementwise operations for the model of one executor."""

    def norm(self, x: torch.Tensor, weights: NormWeights) -> torch.Tensor:
        """Normalise over the last dimension: LayerNorm if there is a bias, otherwise RMSNorm.

        Args:
            x: [tokens, features], contiguous.
        """

    def add_norm(
        self, residual: torch.Tensor, delta: torch.Tensor, weights: NormWeights
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `residual + delta`, rounded to the served precision, and the norm of it."""

    def rope_and_cache(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        tokens: TokenRows,
        cache: LayerCache,
        head_norms: HeadNorms | None,
    ) -> torch.Tensor:
        """Apply head norms and the rotary embedding; write keys and values into the cache.

        Args:
            query: [tokens, heads, head_dim]; rows may be apart, as those of a joined product.
            key, value: [tokens, kv heads, head_dim], likewise.

        Returns:
            The queries, [tokens, heads, head_dim], contiguous.
        """

    def gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Compute `activation(gate) * up`, [tokens, inner], contiguous.

        Args:
            gate_up: [tokens, 2 * inner], the gates first; rows may be apart.
        """


class PlainElementwise:
    """See `ElementwiseKernels`: torch's own operations, on any device."""

    def __init__(self, config: ModelConfig) -> None:
        self._eps = config.norm_eps
        self._activation = ACTIVATIONS[config.activation]

    def norm(self, x: torch.Tensor, weights: NormWeights) -> torch.Tensor:
        weight, bias = weights.weight, weights.bias
        if bias is None:
            normed = functional.rms_norm(x.float(), weight.shape, weight, self._eps)
        else:
            normed = functional.layer_norm(x.float(), weight.shape, weight, bias, self._eps)
        return normed.to(x.dtype)

    def add_norm(
        self, residual: torch.Tensor, delta: torch.Tensor, weights: NormWeights
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = residual + delta
        return x, self.norm(x, weights)

    def rope_and_cache(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        tokens: TokenRows,
        cache: LayerCache,
        head_norms: HeadNorms | None,
    ) -> torch.Tensor:
        if head_norms is not None:
            query = self.norm(query, head_norms.query)
            key = self.norm(key, head_norms.key)
        cache.write(tokens.slots, _apply_rope(key, tokens), value)
        return _apply_rope(query, tokens)

    def gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return self._activation(gate).mul_(up)


def elementwise_kernels(config: ModelConfig, device: torch.device) -> ElementwiseKernels:
    """Choose the fastest implementation for a device."""
    if uses_triton(device):
        from sarathi.backends.torch.kernels.elementwise_kernels import TritonElementwise

        return TritonElementwise(config)
    return PlainElementwise(config)


def _apply_rope(x: torch.Tensor, tokens: TokenRows) -> torch.Tensor:
    cos, sin = tokens.cos.unsqueeze(1), tokens.sin.unsqueeze(1)
    first, second = x.float().chunk(2, dim=-1)
    roped = torch.cat(
        (
            torch.addcmul(first * cos, second, sin, value=-1),
            torch.addcmul(second * cos, first, sin),
        ),
        dim=-1,
    )
    return roped.to(x.dtype)
