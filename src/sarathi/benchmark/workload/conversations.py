"""Requests as turns of conversations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from sarathi.benchmark.workload.lengths import Tokens


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of a conversation."""

    prompt_tokens: int  # with all that was said before
    output_tokens: int
    conversation: int
    number: int  # counts from 0


def converse(
    new: Tokens,
    outputs: Tokens,
    turns: int,
    max_prompt: int | None,
    max_total: int | None,
    rng: np.random.Generator,
) -> Iterator[Turn]:
    """Groups requests, in the order in which they arrive, in conversations of `turns` turns.

    The turns of different conversations are mixed at random. A conversation that would become too
    long with its next turn begins anew with it.

    Args:
        new: tokens that each request adds to its conversation; they alone must not be too long.
        outputs: tokens of the answers, which are part of later prompts.
    """
    of = np.arange(len(new)) // turns
    rng.shuffle(of)
    numbers = count()
    open_turns: dict[int, Turn] = {}
    for group, added, answer in zip(of.tolist(), new.tolist(), outputs.tolist(), strict=True):
        before = open_turns.get(group)
        if before is not None:
            prompt = before.prompt_tokens + before.output_tokens + added
            too_long = _above(prompt, max_prompt) or _above(prompt + answer, max_total)
            turn = Turn(prompt, answer, before.conversation, before.number + 1)
        if before is None or too_long:
            turn = Turn(added, answer, next(numbers), 0)
        open_turns[group] = turn
        yield turn


def _above(tokens: int, limit: int | None) -> bool:
    return limit is not None and tokens > limit
