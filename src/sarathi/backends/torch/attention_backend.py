"""Attention over the KV cache: what every way of computing it has in common, and which to take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from sarathi.backends.torch import attention_plan
from sarathi.backends.torch.kernels import uses_triton
from sarathi.backends.torch.step_inputs import Inputs, StepArrays
from sarathi.models.model_config import ModelConfig


@dataclass(frozen=True)
class Cache:
    """Keys and values of one layer, [blocks, block_size, key heads, head_dim] each."""

    keys: torch.Tensor
    values: torch.Tensor

    def write(self, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store those of the new tokens, [tokens, key heads, head_dim]."""
        self.keys.flatten(0, 1)[slots] = key
        self.values.flatten(0, 1)[slots] = value


class PlannedAttention(Protocol):
    """One step, prepared for all layers."""

    def attention(self, query: torch.Tensor, cache: Cache, window: int) -> torch.Tensor:
        """Causal attention of the new tokens over what the cache has of their sequences.

        Args:
            query: [tokens, heads, head_dim].
            cache: the new tokens are in it.
            window: how many tokens each one sees, itself included; 0 for all before it.

        Returns:
            [tokens, heads, head_dim].
        """


class Attention(Protocol):
    block_size: int  # tokens of a KV block
    supports_graphs: bool  # whether decodes can be captured in a CUDA graph

    def prepare(self, arrays: StepArrays, *, fixed_shape: bool = False) -> StepArrays:
        """Add the arrays that the attention itself needs on the device.

        Args:
            arrays: of any step.
            fixed_shape: for decodes only, where `supports_graphs`: every array's shape depends
                on the number of sequences and the width of the block table alone, so that a
                graph captured with one step's inputs computes another's, copied over them.
        """

    def plan(self, arrays: StepArrays, inputs: Inputs) -> PlannedAttention:
        """Prepare a step for all layers.

        Args:
            arrays: what `prepare` has returned.
            inputs: the same on the device.
        """


def choose(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, deterministic: bool = False
) -> Attention:
    """Make the attention of a model: Triton kernels on GPUs, plain operations on CPUs.

    Args:
        config: with the heads of one rank.
        deterministic: whether a sequence's output must not depend on the rest of the batch.

    Raises:
        ExecutorError: the kernels do not accept the model's heads.
    """
    # Imported here: CPUs do without Triton, and the modules import this one.
    if uses_triton(device):
        from sarathi.backends.torch.triton_attention import TritonAttention

        return TritonAttention(config, dtype, device, deterministic=deterministic)
    from sarathi.backends.torch.plain_attention import PlainAttention

    return PlainAttention(config, dtype, one_by_one=deterministic)


def block_size(device: torch.device) -> int:
    """Tokens of a KV block of what `choose` would make."""
    from sarathi.backends.torch.plain_attention import PlainAttention

    return attention_plan.BLOCK_SIZE if uses_triton(device) else PlainAttention.block_size
