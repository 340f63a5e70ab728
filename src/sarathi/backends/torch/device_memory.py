"""How much of a device's memory the KV cache may have."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import torch

from sarathi.backends.step import Step
from sarathi.system.machine import available_memory

UTILISATION = 0.9  # of a GPU's memory: the rest is for graphs, libraries and fragments


def free_memory(device: torch.device, run_largest: Callable[[], None]) -> int:
    """Bytes that are left for a KV cache while the largest step runs.

    Args:
        run_largest: runs it; on a GPU, what it takes is measured.
    """
    if device.type == "cpu":
        return available_memory()
    release(device)
    torch.cuda.reset_peak_memory_stats(device)
    run_largest()
    torch.cuda.synchronize(device)
    peak: int = torch.cuda.max_memory_reserved(device)
    release(device)
    free, total = torch.cuda.mem_get_info(device)
    # What the driver and other processes have taken.
    others: int = total - free - torch.cuda.memory_reserved(device)
    return max(0, int(total * UTILISATION) - others - peak)


def release(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def largest_step(num_tokens: int, num_sequences: int, block_size: int, num_blocks: int) -> Step:
    """As many tokens and sampled rows as a step may have, of prompts that have just begun.

    All write to the same blocks, so few are enough; what is computed has no meaning.

    Args:
        num_tokens: shared out to the sequences.
        num_blocks: that there are.
    """
    num_sequences = min(num_sequences, num_tokens)
    starts = np.linspace(0, num_tokens, num_sequences + 1).astype(np.int32)
    lengths = np.diff(starts)
    counts = -(-lengths // block_size)
    return Step(
        token_ids=np.zeros(num_tokens, np.int64),
        positions=np.arange(num_tokens) - np.repeat(starts[:-1], lengths),
        query_starts=starts,
        past_lens=np.zeros(num_sequences, np.int32),
        block_ids=(np.arange(counts.sum()) % num_blocks).astype(np.int32),
        block_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        sample_rows=starts[1:].astype(np.int64) - 1,
    )
