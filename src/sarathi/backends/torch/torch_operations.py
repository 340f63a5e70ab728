"""The decoder's operations on the tensors of one step, and of one rank.

What lies between the matrix products (norms, rotary embedding, gates) moves much data and computes
little, so on GPUs it is fused into kernels (`kernels/elementwise_kernels.py`); `PlainElementwise`
composes it of torch's operations. Both compute in float32 and round to the served precision at the
same places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from sarathi.backends.torch.attention_backend import LayerCache, PlannedAttention
from sarathi.backends.torch.kernels import uses_triton
from sarathi.backends.torch.parameters import GATE_UP, QKV, Parameters
from sarathi.backends.torch.process_group import ProcessGroup
from sarathi.backends.torch.step_inputs import StepInputs
from sarathi.models.decoder import attention_module
from sarathi.models.model_config import ModelConfig

if TYPE_CHECKING:
    from sarathi.backends.torch.kernels.elementwise_kernels import TritonElementwise

ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
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


class PlainElementwise:
    """Elementwise operations for the model of one executor: torch's own, on any device."""

    def __init__(self, config: ModelConfig) -> None:
        self._eps = config.norm_eps
        self._activation = ACTIVATIONS[config.activation]

    def norm(self, x: torch.Tensor, weights: NormWeights) -> torch.Tensor:
        """Normalise [tokens, features], contiguous, over the last dimension: LayerNorm if there is
        a bias, otherwise RMSNorm."""
        weight, bias = weights.weight, weights.bias
        if bias is None:
            normed = functional.rms_norm(x.float(), weight.shape, weight, self._eps)
        else:
            normed = functional.layer_norm(x.float(), weight.shape, weight, bias, self._eps)
        return normed.to(x.dtype)

    def add_norm(
        self, residual: torch.Tensor, delta: torch.Tensor, weights: NormWeights
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `residual + delta`, rounded to the served precision, and the norm of it."""
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
        """Apply head norms and the rotary embedding; write keys and values into the cache.

        Args:
            query: [tokens, heads, head_dim]; rows may be apart, as those of a joined product.
            key, value: [tokens, kv heads, head_dim], likewise.

        Returns:
            The queries, [tokens, heads, head_dim], contiguous.
        """
        if head_norms is not None:
            query = self.norm(query, head_norms.query)
            key = self.norm(key, head_norms.key)
        cache.write(tokens.slots, _apply_rope(key, tokens), value)
        return _apply_rope(query, tokens)

    def gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Compute `activation(gate) * up`, [tokens, inner], contiguous, from [tokens, 2 * inner],
        the gates first; rows may be apart."""
        gate, up = gate_up.chunk(2, dim=-1)
        return self._activation(gate).mul_(up)


def elementwise_kernels(
    config: ModelConfig, device: torch.device
) -> PlainElementwise | TritonElementwise:
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


# Rows of a matrix product whose rounding does not depend on their number (measured for MKL, from 8
# rows on).
_ROWS = 16


@dataclass(frozen=True)
class TensorParallelRank:
    """What a rank uses in every step."""

    config: ModelConfig  # with this rank's heads and features
    vocabulary: range  # token ids whose embeddings are here
    parameters: Parameters
    # Cosines and sines of the rotary embeddings' angles, [max_position, head_dim / 2], for each of
    # the configuration's `inv_freqs`
    ropes: Sequence[tuple[torch.Tensor, torch.Tensor]]
    kernels: PlainElementwise | TritonElementwise
    group: ProcessGroup
    deterministic: bool = False  # whether rows must not depend on their number


class TorchOperations:
    """See `models.decoder.Operations`. Activations are in the served precision."""

    def __init__(
        self,
        rank: TensorParallelRank,
        inputs: StepInputs,
        planned: PlannedAttention,
        caches: Mapping[int, LayerCache],
        hidden: torch.Tensor | None,
    ) -> None:
        self._rank = rank
        self._config = rank.config
        self._parameters = rank.parameters
        self._inputs = inputs
        self._planned = planned
        self._caches = caches
        self._hidden = hidden
        self._tokens = [
            TokenRows(cos[inputs.positions], sin[inputs.positions], inputs.slots)
            for cos, sin in rank.ropes
        ]

    def embed(self, weight: str) -> torch.Tensor:
        ids, here = self._inputs.token_ids, self._rank.vocabulary
        if self._rank.group.size == 1:
            return self._scaled(functional.embedding(ids, self._parameters[weight]))
        missing = (ids < here.start) | (ids >= here.stop)
        rows = (ids - here.start).masked_fill_(missing, 0)
        found = functional.embedding(rows, self._parameters[weight])
        return self._scaled(self.reduce(found.masked_fill_(missing.unsqueeze(1), 0)))

    def recv_hidden(self) -> torch.Tensor:
        assert self._hidden is not None
        return self._rank.group.broadcast(self._hidden)

    def linear(self, x: torch.Tensor, name: str, bias: bool = False) -> torch.Tensor:
        return self._product(x, f"{name}.weight", f"{name}.bias" if bias else None)

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return self._rank.kernels.norm(x, self._norm_weights(name))

    def add_norm(
        self, residual: torch.Tensor, delta: torch.Tensor, name: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._rank.kernels.add_norm(residual, delta, self._norm_weights(name))

    def qkv(
        self, x: torch.Tensor, name: str, bias: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute all three as columns of one product: their rows are not contiguous."""
        config = self._config
        queries, keys = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))
        query, key, value = self.linear(x, f"{name}.{QKV}", bias).split(
            (queries, keys, keys), dim=-1
        )
        return query, key, value

    def attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int
    ) -> torch.Tensor:
        cache = self._caches[layer]
        heads = self._rank.kernels.rope_and_cache(
            self._heads(query),
            self._heads(key),
            self._heads(value),
            self._tokens[self._config.rope_of(layer)],
            cache,
            self._head_norms(layer) if self._config.qk_norm else None,
        )
        window = self._config.sliding_windows[layer]
        return self._planned(heads, cache, window).flatten(1)

    def gated(self, x: torch.Tensor, name: str, bias: bool) -> torch.Tensor:
        return self._rank.kernels.gated(self.linear(x, f"{name}.{GATE_UP}", bias))

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        return ACTIVATIONS[self._config.activation](x)

    def add(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b

    def reduce(self, x: torch.Tensor) -> torch.Tensor:
        return self._rank.group.all_reduce(x)

    def sampled_rows(self, x: torch.Tensor) -> torch.Tensor:
        return x[self._inputs.sample_rows]

    def logits(self, x: torch.Tensor, weight: str) -> torch.Tensor:
        """Return float32 logits: of all ranks on rank 0, a rank's own on the others."""
        own = self._product(x, weight).float()
        # The ranks' matrices are of equal size: padded with rows of zeros after the last token.
        found = self._rank.group.gather(own)[:, : self._config.vocab_size]
        if cap := self._config.logit_soft_cap:
            found = found.div(cap).tanh_().mul_(cap)
        return found

    def _product(self, x: torch.Tensor, weight: str, bias: str | None = None) -> torch.Tensor:
        added = None if bias is None else self._parameters[bias]
        missing = -len(x) % _ROWS if self._rank.deterministic else 0
        padded = functional.pad(x, (0, 0, 0, missing)) if missing else x
        return functional.linear(padded, self._parameters[weight], added)[: len(x)]

    def _scaled(self, embeddings: torch.Tensor) -> torch.Tensor:
        scale = self._config.embedding_scale
        if scale == 1:
            return embeddings
        return embeddings.mul_(torch.tensor(scale, dtype=embeddings.dtype).item())

    def _norm_weights(self, name: str) -> NormWeights:
        weight = self._parameters.vector(f"{name}.weight")
        has_bias = self._config.norm == "layer"
        return NormWeights(weight, self._parameters.vector(f"{name}.bias") if has_bias else None)

    def _head_norms(self, layer: int) -> HeadNorms:
        name = attention_module(layer)
        query, key = (
            NormWeights(self._parameters.vector(f"{name}.{norm}.weight"))
            for norm in ("q_norm", "k_norm")
        )
        return HeadNorms(query, key)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, self._config.head_dim))
