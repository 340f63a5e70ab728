"""Attention over the KV cache: what every way of computing it has in common, and which to take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from sarathi.executors.torch.inputs import Inputs, StepArrays
from sarathi.models.config import ModelConfig

if TYPE_CHECKING:  # the modules import this one
    from sarathi.executors.torch.flashinfer_attention import FlashInferAttention
    from sarathi.executors.torch.varlen_attention import VarlenAttention


@dataclass(frozen=True)
class Cache:
    """Keys and values of one layer, [blocks, block_size, key heads, head_dim] each."""

    keys: torch.Tensor
    values: torch.Tensor

    def write(self, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store those of the new tokens, [tokens, key heads, head_dim]."""
        self.keys.flatten(0, 1)[slots] = key
        self.values.flatten(0, 1)[slots] = value


class Planned(Protocol):
    """One step, prepared for all layers."""

    def attend(self, query: torch.Tensor, cache: Cache, window: int) -> torch.Tensor:
        """Causal attention of the new tokens over what the cache has of their sequences.

        Args:
            query: [tokens, heads, head_dim].
            cache: the new tokens are in it.
            window: how many tokens each one sees, itself included; 0 for all before it.

        Returns:
            [tokens, heads, head_dim].
        """


class Recorded(Planned, Protocol):
    """Decodes whose sequences keep their number and their arrays their addresses."""

    def update(self, arrays: StepArrays) -> None:
        """Before the same kernels run anew, on the arrays of another step."""


class Attention(Protocol):
    block_size: int  # tokens of a block that suits it
    records: bool  # whether decodes can be captured in a CUDA graph

    def plan(self, arrays: StepArrays, inputs: Inputs) -> Planned:
        """Prepare a step of any kind."""

    def record(self, arrays: StepArrays, inputs: Inputs) -> Recorded:
        """Prepare decodes to be captured, where that `records`."""


def choose(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, deterministic: bool = False
) -> Attention:
    """The fastest that this machine has for a model.

    Args:
        config: with the heads of one rank.
        deterministic: whether a sequence must not depend on others.
    """
    from sarathi.executors.torch.plain_attention import PlainAttention

    kind = _fast_kind(config, dtype, device)
    if kind is None:
        return PlainAttention(config, dtype, device, one_by_one=deterministic)
    return kind(config, dtype, device)


def block_size(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Tokens of a KV block, of what `choose` would take."""
    from sarathi.executors.torch.plain_attention import PlainAttention

    return (_fast_kind(config, dtype, device) or PlainAttention).block_size


def _fast_kind(
    config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> type[FlashInferAttention | VarlenAttention] | None:
    from sarathi.executors.torch.flashinfer_attention import FlashInferAttention
    from sarathi.executors.torch.varlen_attention import VarlenAttention

    kinds = (FlashInferAttention, VarlenAttention)
    return next((kind for kind in kinds if kind.suits(config, dtype, device)), None)
