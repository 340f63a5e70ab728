"""How many KV blocks fit."""

from __future__ import annotations

from sarathi.engine.config import ConfigError
from sarathi.executors.machine import available_memory

_SHARE_OF_FREE = 0.5  # of the memory that is free once the model is loaded


def num_kv_blocks(*, block_bytes: int, block_size: int, memory: int | None, max_tokens: int) -> int:
    """Blocks to allocate.

    Args:
        block_bytes: bytes of one block over all layers.
        block_size: tokens of one block.
        memory: bytes that the user allows, None for half of what is free.
        max_tokens: tokens that can be in use at most; more blocks would lie idle.

    Raises:
        ConfigError: not even one block fits.
    """
    room = memory if memory is not None else int(available_memory() * _SHARE_OF_FREE)
    if room < block_bytes:
        raise ConfigError(
            f"a KV cache of {room / 1e6:.1f} MB holds no block of {block_size} tokens, which takes "
            f"{block_bytes / 1e6:.1f} MB; give more with --kv-cache-memory"
        )
    useful = -(-max_tokens // block_size)
    return min(room // block_bytes, useful)
