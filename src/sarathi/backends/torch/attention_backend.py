"""Attention over the KV cache: the protocol, the choice of an implementation, and its check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from sarathi.backends.step import StepPart, join_parts
from sarathi.backends.torch import attention_plan
from sarathi.backends.torch.kernels import uses_triton
from sarathi.backends.torch.step_inputs import StepArrays, StepInputs, step_arrays, upload
from sarathi.errors import ExecutorError
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


# Causal attention of a step's new tokens over the cached tokens of their sequences, in any layer.
# Gets queries, [tokens, heads, head_dim], the cache of the layer, which has the new tokens, and how
# many tokens each one sees, itself included, 0 for all before it. Returns the queries' shape.
PlannedAttention = Callable[[torch.Tensor, LayerCache, int], torch.Tensor]


class Attention(Protocol):
    """One way of computing attention, for all steps of a model."""

    block_size: int  # tokens of a KV block
    supports_graphs: bool  # whether decodes can be captured in a CUDA graph

    def prepare(self, arrays: StepArrays, *, fixed_shape: bool = False) -> StepArrays:
        """Add the arrays that the attention itself needs on the device to those of a step.

        Args:
            fixed_shape: for decodes only, where `supports_graphs`: every array's shape depends
                on the number of sequences and the width of the block table alone, so that a
                graph captured with one step's inputs computes another's, copied over them.
        """

    def plan(self, arrays: StepArrays, inputs: StepInputs) -> PlannedAttention:
        """Prepare a step for all layers: the arrays of `prepare`, and the same on the device."""


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


# Largest accepted distance, relative to the norm; a wrong row is 1 or more away.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.05}
_LONG = 640  # tokens of a context whose keys are split, if keys ever are

Lengths = Sequence[tuple[int, int]]  # tokens cached and new of each sequence


def check_attention(
    attention: Attention, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> None:
    """Compare attention over KV blocks with plain attention over whole sequences, on random data,
    for every kind of step and of window that the model has, with the heads of one rank.

    Raises:
        ExecutorError: they differ by more than rounding explains.
    """
    size = attention.block_size
    # Around the ends of blocks: prompts, short and long chunks, and decodes.
    decodes = ((size - 1, 1), (0, 1), (_LONG, 1), (size, 1))
    hybrid = ((0, 5), *decodes, (3 * size // 2, 7), (size + 3, 40))
    steps = [(hybrid, False), (hybrid[:1], False), (decodes, False)]
    if attention.supports_graphs:
        steps.append((decodes, True))
    with torch.inference_mode():
        for window in sorted(set(config.sliding_windows)):
            distances = [
                _distance(attention, config, window, lengths, fixed_shape, dtype, device)
                for lengths, fixed_shape in steps
            ]
            worst = np.max(distances)  # unlike max(), gives NaN if there is one
            if not worst <= _TOLERANCE[dtype]:
                raise ExecutorError(
                    f"self-check failed: attention is {worst:.3f} away from the reference, more "
                    f"than the {_TOLERANCE[dtype]} that rounding explains; not serving wrong "
                    "answers. Are these supported versions of torch and triton?"
                )


def _distance(
    attention: Attention,
    config: ModelConfig,
    window: int,
    lengths: Lengths,
    fixed_shape: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> float:
    """Return the largest relative distance of a token's output from the reference."""
    size = attention.block_size
    generator = torch.Generator().manual_seed(0)

    def random(tokens: int, heads: int) -> torch.Tensor:
        shape = (tokens, heads, config.head_dim)
        return torch.randn(shape, generator=generator).to(device, dtype)

    counts = [-(-(past + new) // size) for past, new in lengths]
    shape = (sum(counts), size, config.num_kv_heads, config.head_dim)
    cache = LayerCache(*(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)))
    blocks = list(range(sum(counts)))
    parts, queries, expected = [], [], []
    for (past, new), count in zip(lengths, counts, strict=True):
        table = [blocks.pop() for _ in range(count)]  # from the last one down
        parts.append(StepPart([0] * new, past, table, samples=False))
        query = random(new, config.num_heads)
        key, value = (random(past + new, config.num_kv_heads) for _ in range(2))
        positions = np.arange(past + new)
        slots = np.array(table)[positions // size] * size + positions % size
        cache.write(torch.from_numpy(slots).to(device), key, value)
        queries.append(query)
        expected.append(_plain(config, query.float(), key.float(), value.float(), window))
    arrays = step_arrays(join_parts(parts, size), size)
    arrays = attention.prepare(arrays, fixed_shape=fixed_shape)
    planned = attention.plan(arrays, upload(arrays, device))
    found = planned(torch.cat(queries), cache, window).float()
    right = torch.cat(expected)
    return float(((found - right).flatten(1).norm(dim=1) / right.flatten(1).norm(dim=1)).max())


def _plain(
    config: ModelConfig, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int
) -> torch.Tensor:
    """Compute attention of the last rows of one sequence, all scores at once."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * config.score_scale
    if cap := config.attention_soft_cap:
        scores = (scores / cap).tanh() * cap
    keys = torch.arange(len(key), device=query.device)
    distance = keys[-len(query) :, None] - keys
    hidden = distance < 0
    if window:
        hidden |= distance >= window
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, value)
