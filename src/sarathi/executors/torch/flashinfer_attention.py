"""FlashInfer's attention over paged KV caches (Ye et al., MLSys 2025), where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from sarathi.executors.torch.attention import Cache
from sarathi.executors.torch.inputs import Inputs, StepArrays
from sarathi.models.config import ModelConfig

_HEADS = (64, 128, 256)  # dimensions that it has kernels for
_CAPABILITY = (8, 0)
_WORKSPACE = 256 * 1024 * 1024  # bytes, for partial results of long contexts


class FlashInferAttention:
    block_size = 32
    records = True

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._config = config
        self._dtype = dtype
        # Zeroed, as the library asks; all wrappers take turns with it.
        self._workspace = torch.zeros(_WORKSPACE, dtype=torch.uint8, device=device)
        self._wrappers: dict[int, Any] = {}  # for steps that are not captured, by window

    @staticmethod
    def suits(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> bool:
        return (
            device.type == "cuda"
            and dtype is not torch.float32
            and config.head_dim in _HEADS
            and torch.cuda.get_device_capability(device) >= _CAPABILITY
            and find_spec("flashinfer") is not None
        )

    def plan(self, arrays: StepArrays, inputs: Inputs) -> _FlashInferPlan:
        import flashinfer

        def wrapper(window: int) -> Any:
            """Takes decodes, too: they are prompts of one token."""
            if window not in self._wrappers:
                self._wrappers[window] = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
                    self._workspace, "NHD"
                )
            self._wrappers[window].plan(
                torch.from_numpy(arrays.query_starts),
                *_pages(arrays, self.block_size),
                **self._sizes("head_dim_qk"),
                causal=True,
                window_left=window - 1 if window else -1,
            )
            return self._wrappers[window]

        return _FlashInferPlan(wrapper)

    def record(self, arrays: StepArrays, inputs: Inputs) -> _FlashInferRecord:
        import flashinfer

        def wrapper() -> Any:
            """Has arrays of its own, of the same size in every step, which it plans into."""
            device = inputs.contexts.device
            count, width = arrays.tables.shape
            return flashinfer.BatchDecodeWithPagedKVCacheWrapper(
                self._workspace,
                "NHD",
                use_cuda_graph=True,
                use_tensor_cores=True,  # for any number of heads that share a key head
                paged_kv_indptr_buffer=torch.zeros(count + 1, dtype=torch.int32, device=device),
                paged_kv_indices_buffer=torch.zeros(
                    count * width, dtype=torch.int32, device=device
                ),
                paged_kv_last_page_len_buffer=torch.ones(count, dtype=torch.int32, device=device),
            )

        def plan(wrapper: Any, arrays: StepArrays, window: int) -> None:
            wrapper.plan(
                *_pages(arrays, self.block_size),
                **self._sizes("head_dim"),
                window_left=window - 1 if window else -1,
            )

        windows = sorted(set(self._config.sliding_windows))
        record = _FlashInferRecord({window: wrapper() for window in windows}, plan)
        record.update(arrays)
        return record

    def _sizes(self, head_dim: str) -> dict[str, Any]:
        config = self._config
        return {
            "num_qo_heads": config.num_heads,
            "num_kv_heads": config.num_kv_heads,
            head_dim: config.head_dim,
            "page_size": self.block_size,
            "q_data_type": self._dtype,
            "kv_data_type": self._dtype,
        }


class _FlashInferPlan:
    def __init__(self, wrapper: Callable[[int], Any]) -> None:
        self._make = wrapper
        self._made: dict[int, Any] = {}  # by window

    def attend(self, query: torch.Tensor, cache: Cache, window: int) -> torch.Tensor:
        if window not in self._made:
            self._made[window] = self._make(window)
        mixed: torch.Tensor = self._made[window].run(query, (cache.keys, cache.values))
        return mixed


class _FlashInferRecord:
    def __init__(
        self, wrappers: dict[int, Any], plan: Callable[[Any, StepArrays, int], None]
    ) -> None:
        self._wrappers = wrappers  # by window
        self._plan = plan

    def attend(self, query: torch.Tensor, cache: Cache, window: int) -> torch.Tensor:
        mixed: torch.Tensor = self._wrappers[window].run(query, (cache.keys, cache.values))
        return mixed

    def update(self, arrays: StepArrays) -> None:
        for window, wrapper in self._wrappers.items():
            self._plan(wrapper, arrays, window)


def _pages(arrays: StepArrays, block_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where each sequence's blocks begin, the blocks, and how many tokens are in the last one."""
    counts = -(-arrays.contexts // block_size)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    blocks = arrays.tables[np.arange(arrays.tables.shape[1]) < counts[:, None]]
    last = (arrays.contexts - 1) % block_size + 1
    return torch.from_numpy(starts), torch.from_numpy(blocks), torch.from_numpy(last)
