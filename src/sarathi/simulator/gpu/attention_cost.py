"""How long attention takes in one layer of one worker.

The kernels of the profiles are FlashAttention's for a paged cache: a block of 64 query rows of one
head runs along the keys, and a query alone along its whole cache.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from sarathi.simulator.devices import Device

ROWS = 64  # of a block


class Affine(NamedTuple):
    """Seconds as `fixed + each * amount`."""

    fixed: float
    each: float


def prefill(device: Device, heads: int, head_dim: int, rows: int) -> Affine:
    """A chunk of `rows` tokens, by the number of tokens before it that it attends to.

    The tokens of the chunk itself are dearer than those of the cache: a block masks them, and the
    profiled kernel writes them to the cache, too. They are counted as they are needed, half of them
    by each row on average.
    """
    each = seconds_by_key(device, heads, head_dim, rows)
    own = device.achieved.prefill_new * rows / 2
    return Affine(
        device.achieved.prefill_launch + each * (own + device.achieved.prefill_keys), each
    )


def seconds_by_key(device: Device, heads: int, head_dim: int, rows: int) -> float:
    """One more key for all rows of a chunk: two products of `head_dim` for each row and head."""
    padded = ceil(rows / ROWS) * ROWS
    flops = 4 * heads * head_dim * padded
    return flops / (device.peak_flops * device.achieved.prefill_compute)


def decode(device: Device, kv_heads: int, head_dim: int, bytes_per_kv: float) -> Affine:
    """A batch of decodes, by the tokens in the cache of all of them together.

    Every key and value is read once, and for the rest a decode waits for memory.
    """
    size = 2 * kv_heads * head_dim * bytes_per_kv
    return Affine(
        device.achieved.decode_launch,
        size / (device.bandwidth * device.achieved.decode_bandwidth),
    )
