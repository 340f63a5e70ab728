"""Small steps that need every kernel once, so that none is compiled while requests wait."""

from __future__ import annotations

from sarathi.backends.step import Step, StepPart, join_parts

_PROMPT = 256  # tokens; enough for prefill tiles, whatever the heads
_CONTEXT = 4096  # tokens; the keys of a decode this long are split


def warm_up_steps(block_size: int, max_position: int) -> list[Step]:
    """Steps with a prompt, a prompt and a decode, and a decode, as far as `max_position` allows.

    They read and write KV block 0 alone; what they compute has no meaning.
    """

    def part(past: int, new: int) -> StepPart:
        return StepPart([0] * new, past, [0] * -(-(past + new) // block_size), samples=True)

    prompt = part(0, min(_PROMPT, max_position))
    decode = part(min(_CONTEXT, max_position) - 1, 1)
    return [join_parts(parts, block_size) for parts in ([prompt], [prompt, decode], [decode])]
