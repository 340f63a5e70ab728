"""Groups requests into conversations, whose prompts grow from turn to turn."""

from __future__ import annotations

import math

import numpy as np

from sarathi.bench.workload.lengths import Tokens
from sarathi.errors import BenchmarkError

_MIN_UNFINISHED = 8  # unfinished conversations that a run soon has, at least


def converse(
    new: Tokens,
    outputs: Tokens,
    turns: int,
    max_prompt: int | None,
    max_total: int | None,
    rng: np.random.Generator,
) -> tuple[Tokens, Tokens, Tokens]:
    """Group requests, in the order of arrival, into conversations of `turns` turns.

    One request in `turns`, at random, starts a conversation; so do others while few conversations
    are unfinished, so that a turn rarely arrives while the one before is being answered. All other
    requests continue an unfinished one, also at random. All of this depends only on earlier
    requests. A conversation that would become too long with its next turn starts over with it.

    Args:
        new: tokens that each request adds to its conversation; on their own not too long.
        outputs: tokens of the answers, which are part of later prompts.

    Returns:
        Tokens of the prompt with all earlier turns, conversation, and number of the turn in it,
        of each request.

    Raises:
        BenchmarkError: all second turns would have been too long.
    """
    limits = {"a --max-prompt": max_prompt, "a context": max_total}
    longest_prompt, longest_total = (limit or math.inf for limit in limits.values())
    made: list[tuple[int, int, int]] = []
    unfinished: list[tuple[int, int, int, int]] = []  # tokens, conversation, turn, turns to come
    started, cut = 0, False
    chances = rng.random((len(new), 2)).tolist()
    for added, answer, (begin, which) in zip(new.tolist(), outputs.tolist(), chances, strict=True):
        before, conversation, turn, left = 0, 0, 0, turns
        if len(unfinished) > min(len(made) // turns, _MIN_UNFINISHED) and begin * turns >= 1:
            before, conversation, turn, left = unfinished.pop(int(which * len(unfinished)))
        if before + added > longest_prompt or before + added + answer > longest_total:
            before, cut = 0, True
        if not before:
            conversation, turn = started, 0
            started += 1
        made.append((before + added, conversation, turn))
        if left > 1:
            unfinished.append((before + added + answer, conversation, turn + 1, left - 1))
    prompts, conversations, numbers = np.array(made).T
    if cut and not numbers.any():
        named = (f"{name} of {limit} tokens" for name, limit in limits.items() if limit is not None)
        raise BenchmarkError(
            f"--turns {turns} has no effect: with {' and '.join(named)}, no conversation has room "
            "for a second turn"
        )
    return prompts, conversations, numbers
