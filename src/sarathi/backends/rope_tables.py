"""Tables of the rotary position embedding (RoPE): cosines and sines by position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sarathi.errors import ExecutorError
from sarathi.system.machine import available_memory

F32 = npt.NDArray[np.float32]

_CHUNK = 1 << 16  # positions at a time, with angles in float64: float32 is coarse far out


def rope_tables(inv_freq: Sequence[float], max_position: int) -> tuple[F32, F32]:
    """Compute cosines and sines of the angles of all positions.

    Returns:
        [max_position, len(inv_freq)] each.

    Raises:
        ExecutorError: they do not fit into memory.
    """
    num_bytes = 2 * max_position * len(inv_freq) * np.dtype(np.float32).itemsize
    if num_bytes > available_memory():
        raise ExecutorError(
            f"rotary embeddings of {max_position} positions take {num_bytes / 1e9:.1f} GB, more "
            "than is free: lower --max-model-len"
        )
    frequencies = np.asarray(inv_freq, np.float64)
    cos, sin = (np.empty((max_position, len(inv_freq)), np.float32) for _ in range(2))
    for first in range(0, max_position, _CHUNK):
        rows = slice(first, min(first + _CHUNK, max_position))
        angles = np.outer(np.arange(rows.start, rows.stop), frequencies)
        cos[rows], sin[rows] = np.cos(angles), np.sin(angles)
    return cos, sin
