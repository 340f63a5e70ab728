"""The decoder's operations on the tensors of one step, and of one rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

from sarathi.executors.torch.attention import Cache, Planned
from sarathi.executors.torch.group import Group
from sarathi.executors.torch.inputs import Inputs
from sarathi.executors.torch.parameters import Parameters
from sarathi.models.config import ModelConfig

# Rows of a matrix product whose rounding does not depend on how many there are (measured for MKL,
# from 8 on).
_ROWS = 16


@dataclass(frozen=True)
class Rank:
    """What stays the same from step to step."""

    config: ModelConfig  # with this rank's heads and features
    vocabulary: range  # token ids whose embeddings are here
    parameters: Parameters
    rotary: Rotary
    group: Group
    deterministic: bool = False  # whether rows must not depend on how many there are


class Rotary:
    """Cosines and sines of the rotary embedding's angles, by position."""

    def __init__(self, config: ModelConfig, max_position: int, device: torch.device) -> None:
        # The angles in float64, since float32 is coarse at high positions.
        positions = torch.arange(max_position, dtype=torch.float64)
        angles = torch.outer(positions, torch.tensor(config.inv_freq, dtype=torch.float64))
        self._cos = angles.cos().float().to(device)
        self._sin = angles.sin().float().to(device)

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[tokens, 1, head_dim / 2] each."""
        return self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)


class TorchOperations:
    """See `models.decoder.Operations`. Activations are in the served precision, norms and
    rotations are computed in float32."""

    def __init__(
        self,
        rank: Rank,
        inputs: Inputs,
        planned: Planned,
        caches: Mapping[int, Cache],
        received: torch.Tensor | None,
    ) -> None:
        self._rank = rank
        self._parameters = rank.parameters
        self._inputs = inputs
        self._planned = planned
        self._caches = caches
        self._received = received
        self._cos, self._sin = rank.rotary.at(inputs.positions)

    def embed(self, weight: str) -> torch.Tensor:
        ids, here = self._inputs.token_ids, self._rank.vocabulary
        if self._rank.group.size == 1:
            return functional.embedding(ids, self._parameters[weight])
        missing = (ids < here.start) | (ids >= here.stop)
        rows = (ids - here.start).masked_fill_(missing, 0)
        found = functional.embedding(rows, self._parameters[weight])
        return self.reduce(found.masked_fill_(missing.unsqueeze(1), 0))

    def received(self) -> torch.Tensor:
        assert self._received is not None
        return self._rank.group.broadcast(self._received)

    def linear(self, x: torch.Tensor, weight: str, bias: str | None = None) -> torch.Tensor:
        added = None if bias is None else self._parameters[bias]
        missing = -len(x) % _ROWS if self._rank.deterministic else 0
        padded = functional.pad(x, (0, 0, 0, missing)) if missing else x
        return functional.linear(padded, self._parameters[weight], added)[: len(x)]

    def rms_norm(self, x: torch.Tensor, weight: str) -> torch.Tensor:
        scale = self._parameters.vector(weight)
        eps = self._rank.config.norm_eps
        return functional.rms_norm(x.float(), scale.shape, scale, eps).to(x.dtype)

    def layer_norm(self, x: torch.Tensor, weight: str, bias: str) -> torch.Tensor:
        scale, shift = self._parameters.vector(weight), self._parameters.vector(bias)
        eps = self._rank.config.norm_eps
        return functional.layer_norm(x.float(), scale.shape, scale, shift, eps).to(x.dtype)

    def head_norm(self, x: torch.Tensor, weight: str, num_heads: int) -> torch.Tensor:
        return self.rms_norm(self._heads(x, num_heads), weight).flatten(1)

    def rotate(self, x: torch.Tensor, num_heads: int) -> torch.Tensor:
        first, second = self._heads(x, num_heads).float().chunk(2, dim=-1)
        rotated = torch.cat(
            (
                torch.addcmul(first * self._cos, second, self._sin, value=-1),
                torch.addcmul(second * self._cos, first, self._sin),
            ),
            dim=-1,
        )
        return rotated.flatten(1).to(x.dtype)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int
    ) -> torch.Tensor:
        config, cache = self._rank.config, self._caches[layer]
        cache.write(
            self._inputs.slots,
            self._heads(key, config.num_kv_heads),
            self._heads(value, config.num_kv_heads),
        )
        queries = self._heads(query, config.num_heads)
        return self._planned.attend(queries, cache, config.sliding_windows[layer]).flatten(1)

    def add(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b

    def multiply(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a * b

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        return functional.silu(x)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        return functional.gelu(x)

    def reduce(self, x: torch.Tensor) -> torch.Tensor:
        return self._rank.group.all_reduce(x)

    def sampled_rows(self, x: torch.Tensor) -> torch.Tensor:
        return x[self._inputs.sample_rows]

    def logits(self, x: torch.Tensor, weight: str) -> torch.Tensor:
        """Float32; of all ranks on rank 0, its own on any other."""
        own = self.linear(x, weight).float()
        # The ranks' matrices are of equal size: rows of zeros follow the last token's.
        return self._rank.group.gather(own)[:, : self._rank.config.vocab_size]

    def _heads(self, x: torch.Tensor, num_heads: int) -> torch.Tensor:
        return x.view(-1, num_heads, self._rank.config.head_dim)
