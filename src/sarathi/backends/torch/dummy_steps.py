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

    prompt = _dummy_part(0, min(_PROMPT, max_position), block_size)
    decode = _dummy_part(min(_CONTEXT, max_position) - 1, 1, block_size)
    return [join_parts(parts, block_size) for parts in ([prompt], [prompt, decode], [decode])]


def largest_step(num_tokens: int, num_sequences: int, block_size: int) -> Step:
    """Return a step with as many tokens and sampled rows as possible, of whole prompts.

    Like `warm_up_steps` it reads and writes KV block 0 only.

    Args:
        num_tokens: divided among the sequences.
    """
    num_sequences = min(num_sequences, num_tokens)
    starts = np.linspace(0, num_tokens, num_sequences + 1).astype(int)
    return join_parts([_dummy_part(0, new, block_size) for new in np.diff(starts)], block_size)


def _dummy_part(past: int, new: int, block_size: int) -> StepPart:
    return StepPart([0] * new, past, [0] * -(-(past + new) // block_size), samples=True)
