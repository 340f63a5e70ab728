"""Attention over the KV cache: the protocol of its implementations, and the choice of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from sarathi.backends.torch import attention_plan
from sarathi.backends.torch.kernels import uses_triton
from sarathi.backends.torch.step_inputs import StepArrays, StepInputs
from sarathi.models.model_config import ModelConfig


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer, [blocks, block_size, key heads, head_dim] each."""

    keys: torch.Tensor
    values: torch.Tensor

    def write(self, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store keys and values of the new tokens, [tokens, key heads, head_dim]."""
        self.keys.flatten(0, 1)[slots] = key
        self.values.flatten(0, 1)[slots] = value


class PlannedAttention(Protocol):
    """One step, prepared for all layers."""

    def attention(self, query: torch.Tensor, cache: LayerCache, window: int) -> torch.Tensor:
        """Compute causal attention of the new tokens over the cached tokens of their sequences.

        Args:
            query: [tokens, heads, head_dim].
            cache: contains the new tokens.
            window: how many tokens each one sees, itself included; 0 for all before it.

        Returns:
            [tokens, heads, head_dim].
        """


class Attention(Protocol):
    """One way of computing attention, for all steps of a model."""

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

    def plan(self, arrays: StepArrays, inputs: StepInputs) -> PlannedAttention:
        """Prepare a step for all layers.

        Args:
            arrays: what `prepare` has returned.
            inputs: the same on the device.
        """


def choose_attention(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, deterministic: bool = False
) -> Attention:
    """Choose the attention of a model: Triton kernels on GPUs, plain operations on CPUs.

    Args:
        config: with the heads of one rank.
        deterministic: whether a sequence's output must not depend on its batch.

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
    """Return the tokens of a KV block of the attention that `choose_attention` makes."""
    from sarathi.backends.torch.plain_attention import PlainAttention

    return attention_plan.BLOCK_SIZE if uses_triton(device) else PlainAttention.block_size
