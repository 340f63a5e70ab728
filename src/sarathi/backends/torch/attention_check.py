"""Check the attention over KV blocks against plain attention over whole sequences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sarathi.backends.step import StepPart, join_parts
from sarathi.backends.torch.attention_backend import Attention, LayerCache
from sarathi.backends.torch.step_inputs import step_arrays, upload
from sarathi.errors import ExecutorError
from sarathi.models.model_config import ModelConfig

# Largest accepted distance, relative to the norm; a wrong row is 1 or more away.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.05}
_LONG = 640  # tokens of a context whose keys are split, if keys ever are

Lengths = Sequence[tuple[int, int]]  # tokens cached and new of each sequence


def check_attention(
    attention: Attention, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> None:
    """Compare on random data, for every kind of step and of window that the model has.

    Args:
        config: with the heads of one rank.

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

    tables, used = [], 0
    for past, new in lengths:
        count = -(-(past + new) // size)
        tables.append(list(range(used + count - 1, used - 1, -1)))
        used += count
    shape = (used, size, config.num_kv_heads, config.head_dim)
    cache = LayerCache(*(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)))
    queries, expected = [], []
    for (past, new), table in zip(lengths, tables, strict=True):
        query = random(new, config.num_heads)
        key, value = (random(past + new, config.num_kv_heads) for _ in range(2))
        positions = np.arange(past + new)
        slots = np.array(table)[positions // size] * size + positions % size
        cache.write(torch.from_numpy(slots).to(device), key, value)
        queries.append(query)
        expected.append(_plain(query.float(), key.float(), value.float(), window))
    parts = [
        StepPart([0] * new, past, table, samples=False)
        for (past, new), table in zip(lengths, tables, strict=True)
    ]
    arrays = step_arrays(join_parts(parts, size), size)
    arrays = attention.prepare(arrays, fixed_shape=fixed_shape)
    planned = attention.plan(arrays, upload(arrays, device))
    found = planned.attention(torch.cat(queries), cache, window).float()
    right = torch.cat(expected)
    return float(((found - right).flatten(1).norm(dim=1) / right.flatten(1).norm(dim=1)).max())


def _plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int
) -> torch.Tensor:
    """Compute attention of the last rows of one sequence, all scores at once."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * query.shape[2] ** -0.5
    keys = torch.arange(len(key), device=query.device)
    distance = keys[-len(query) :, None] - keys
    hidden = distance < 0
    if window:
        hidden |= distance >= window
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, value)
