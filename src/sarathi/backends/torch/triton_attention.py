"""Attention by Triton kernels: any hybrid batch in one launch per layer."""

from __future__ import annotations

from dataclasses import replace

import torch

from sarathi.backends.torch.attention_backend import LayerCache, PlannedAttention
from sarathi.backends.torch.attention_plan import (
    BLOCK_SIZE,
    HEAD_MULTIPLE,
    LARGEST_HEAD,
    AttentionPlanner,
    AttentionShape,
)
from sarathi.backends.torch.kernels.attention_kernel import Workspace, launch_attention
from sarathi.backends.torch.step_inputs import StepArrays, StepInputs
from sarathi.errors import ExecutorError
from sarathi.models.model_config import ModelConfig

_INTERPRETER_SMS = 8  # multiprocessors to plan for without a GPU


class TritonAttention:
    """See `attention_backend.Attention`. The kernels are in `kernels.attention_kernel`."""

    block_size = BLOCK_SIZE
    supports_graphs = True

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        deterministic: bool = False,
    ) -> None:
        """Choose kernels for a model, as `choose_attention` does, for a GPU, or for the CPU under
        Triton's interpreter.

        Raises:
            ExecutorError: the kernels do not accept the head size, or the precision.
        """
        if config.head_dim % HEAD_MULTIPLE or config.head_dim > LARGEST_HEAD:
            raise ExecutorError(
                f"head size {config.head_dim}: attention on GPUs takes multiples of "
                f"{HEAD_MULTIPLE} up to {LARGEST_HEAD}"
            )
        if device.type == "cpu" and dtype is torch.bfloat16:
            raise ExecutorError(
                "precision bf16: Triton's interpreter multiplies bfloat16 matrices as integers; "
                "it takes f32 and f16"
            )
        self._shape = AttentionShape(config.num_heads, config.num_kv_heads, config.head_dim)
        num_sms = _INTERPRETER_SMS
        if device.type == "cuda":
            num_sms = int(torch.cuda.get_device_properties(device).multi_processor_count)
        self._planner = AttentionPlanner.make(
            self._shape,
            dtype.itemsize,
            num_sms,
            deterministic=deterministic,
            max_context=config.max_position,
        )
        self._windows = sorted(set(config.sliding_windows))
        self._scale, self._soft_cap = config.score_scale, config.attention_soft_cap
        self._device = device
        self._workspace = Workspace(0, self._shape, device)

    def prepare(self, arrays: StepArrays, *, fixed_shape: bool = False) -> StepArrays:
        """See `Attention.prepare`. One work list per distinct window serves all layers."""
        planner, max_context = self._planner, arrays.tables.shape[1] * self.block_size
        work = tuple(
            planner.plan_decodes(arrays.contexts, window, max_context)
            if fixed_shape
            else planner.plan(arrays.query_starts, arrays.contexts, window)
            for window in self._windows
        )
        return replace(arrays, work=work)

    def plan(self, arrays: StepArrays, inputs: StepInputs) -> PlannedAttention:
        assert len(inputs.work) == len(self._windows), "the arrays have not been prepared"
        # Shared by all plans: steps run one after the other. One that has become too small stays
        # with the plans that were made with it.
        num_rows = max(work.num_partial_rows for work in arrays.work)
        if len(self._workspace.lse) < num_rows:
            self._workspace = Workspace(num_rows, self._shape, self._device)
        shape, workspace = self._shape, self._workspace
        works = {
            work.window: (work, tensors)
            for work, tensors in zip(arrays.work, inputs.work, strict=True)
        }

        def attention(query: torch.Tensor, cache: LayerCache, window: int) -> torch.Tensor:
            work, tensors = works[window]
            return launch_attention(
                query,
                cache.keys,
                cache.values,
                inputs.tables,
                work,
                tensors.items,
                tensors.merges,
                workspace,
                shape,
                scale=self._scale,
                soft_cap=self._soft_cap,
            )

        return attention
