"""Does attention over blocks give what attention over plain rows gives?"""

from __future__ import annotations

import numpy as np
import torch

from sarathi.executors.errors import ExecutorError
from sarathi.executors.step import Part, join_parts
from sarathi.executors.torch.attention import Attention, Cache
from sarathi.executors.torch.inputs import Carrier, step_arrays
from sarathi.models.config import ModelConfig

# Largest accepted distance, relative to the length; a wrong row is 1 or more away.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.05}
# Tokens cached and new of each sequence, around the ends of blocks of `size` tokens.
_LENGTHS = ((0, 5), (-1, 1), (0, 1), (3, 7), (1, 1))


def check_attention(
    attention: Attention, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> None:
    """Compare on random data, for every kind of window that the model has.

    Args:
        config: with the heads of one rank.

    Raises:
        ExecutorError: they differ by more than rounding explains.
    """
    with torch.inference_mode():
        for window in sorted(set(config.sliding_windows)):
            worst = _distance(attention, config, window, dtype, device)
            if not worst <= _TOLERANCE[dtype]:
                raise ExecutorError(
                    f"self-check failed: attention is {worst:.3f} away from the reference, more "
                    f"than the {_TOLERANCE[dtype]} that rounding explains; not serving wrong "
                    "answers. Is this a supported version of torch?"
                )


def _distance(
    attention: Attention,
    config: ModelConfig,
    window: int,
    dtype: torch.dtype,
    device: torch.device,
) -> float:
    size = attention.block_size
    pasts = [size + past if past < 0 else past * size // 2 for past, _ in _LENGTHS]
    news = [new for _, new in _LENGTHS]
    generator = torch.Generator().manual_seed(0)

    def made_up(tokens: int, heads: int) -> torch.Tensor:
        shape = (tokens, heads, config.head_dim)
        return torch.randn(shape, generator=generator).to(device, dtype)

    tables, used = [], 0
    for past, new in zip(pasts, news, strict=True):
        count = -(-(past + new) // size)
        tables.append(list(range(used + count - 1, used - 1, -1)))
        used += count
    shape = (used, size, config.num_kv_heads, config.head_dim)
    cache = Cache(*(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)))
    queries, expected = [], []
    for past, new, table in zip(pasts, news, tables, strict=True):
        query = made_up(new, config.num_heads)
        key, value = (made_up(past + new, config.num_kv_heads) for _ in range(2))
        places = np.arange(past + new)
        slots = np.array(table)[places // size] * size + places % size
        cache.write(torch.from_numpy(slots).to(device), key, value)
        queries.append(query)
        expected.append(_plain(query.float(), key.float(), value.float(), window))
    parts = [
        Part([0] * new, past, table, samples=False)
        for past, new, table in zip(pasts, news, tables, strict=True)
    ]
    arrays = step_arrays(join_parts(parts, size), size)
    planned = attention.plan(arrays, Carrier(device).send(arrays))
    found = planned.attend(torch.cat(queries), cache, window).float()
    right = torch.cat(expected)
    return float(((found - right).flatten(1).norm(dim=1) / right.flatten(1).norm(dim=1)).max())


def _plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int
) -> torch.Tensor:
    """Attention of the last rows of one sequence, all scores at once."""
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
