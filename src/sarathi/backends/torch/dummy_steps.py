"""Steps whose results have no meaning: they compile kernels and show how much memory is used."""

from __future__ import annotations

import numpy as np

from sarathi.backends.step import Step, StepPart, join_parts

_PROMPT = 256  # tokens; enough for prefill tiles, for any number of heads
_CONTEXT = 4096  # tokens; the keys of a decode this long are split


def warm_up_steps(block_size: int, max_position: int) -> list[Step]:
    """Return a prompt, a prompt with a decode, and a decode, as far as `max_position` allows.

    Together they need every kernel once, so that none is compiled while requests wait. They read
    and write KV block 0 only.
    """

    def part(past: int, new: int) -> StepPart:
        return StepPart([0] * new, past, [0] * -(-(past + new) // block_size), samples=True)

    prompt = part(0, min(_PROMPT, max_position))
    decode = part(min(_CONTEXT, max_position) - 1, 1)
    return [join_parts(parts, block_size) for parts in ([prompt], [prompt, decode], [decode])]


def largest_step(num_tokens: int, num_sequences: int, block_size: int, num_blocks: int) -> Step:
    """Return a step with as many tokens and sampled rows as possible, of whole prompts.

    All write to the same blocks, so few are enough.

    Args:
        num_tokens: divided among the sequences.
        num_blocks: of the KV cache.
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
