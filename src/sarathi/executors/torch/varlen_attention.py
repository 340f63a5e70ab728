"""Torch's own attention for sequences of different lengths, over block tables (FlashAttention)."""

from __future__ import annotations

import torch

from sarathi.executors.torch.attention import Cache
from sarathi.executors.torch.inputs import Inputs, StepArrays
from sarathi.models.config import ModelConfig

_LARGEST_HEAD = 256
_HEAD_MULTIPLE = 8
_CAPABILITY = (8, 0)  # of the oldest GPU that the kernels are made for


class VarlenAttention:
    block_size = 256  # FlashAttention 2 takes multiples of it
    records = True

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        pass

    @staticmethod
    def suits(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> bool:
        if device.type != "cuda" or dtype is torch.float32:
            return False
        return (
            torch.cuda.get_device_capability(device) >= _CAPABILITY
            and config.head_dim <= _LARGEST_HEAD
            and config.head_dim % _HEAD_MULTIPLE == 0
        )

    def plan(self, arrays: StepArrays, inputs: Inputs) -> _VarlenPlan:
        return _VarlenPlan(arrays, inputs, self.block_size)

    def record(self, arrays: StepArrays, inputs: Inputs) -> _VarlenPlan:
        return _VarlenPlan(arrays, inputs, self.block_size)


class _VarlenPlan:
    def __init__(self, arrays: StepArrays, inputs: Inputs, block_size: int) -> None:
        self._inputs = inputs
        self._queries = int((arrays.query_starts[1:] - arrays.query_starts[:-1]).max())
        # A bound, so that it holds for every step that a graph is replayed for.
        self._context = arrays.tables.shape[1] * block_size

    def attend(self, query: torch.Tensor, cache: Cache, window: int) -> torch.Tensor:
        # Here, since importing it takes a second, which only GPUs need.
        from torch.nn.attention.varlen import varlen_attn

        mixed: torch.Tensor = varlen_attn(
            query,
            cache.keys,
            cache.values,
            self._inputs.query_starts,
            self._inputs.context_starts,
            self._queries,
            self._context,
            # Tokens before the query, and after it.
            window_size=(window - 1 if window else -1, 0),
            enable_gqa=True,
            seqused_k=self._inputs.contexts,
            block_table=self._inputs.tables,
            # FlashAttention 2 leaves out rows of ragged batches when it splits paged contexts
            # (pytorch/pytorch#194167).
            num_splits=1,
        )
        return mixed

    def update(self, arrays: StepArrays) -> None:
        """Everything is read from the inputs."""
