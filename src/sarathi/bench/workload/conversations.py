"""Groups requests into conversations, whose prompts grow from turn to turn."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import numpy as np

from sarathi.bench.workload.lengths import Tokens
from sarathi.errors import BenchmarkError

_MIN_UNFINISHED = 8  # unfinished conversations that a run soon has, at least


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of a conversation."""

    prompt_tokens: int  # with all earlier turns
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
) -> list[Turn]:
    """Group requests, in the order of arrival, into conversations of `turns` turns.

    One request in `turns`, at random, starts a conversation; so do others while few conversations
    are unfinished, so that a turn rarely arrives while the one before is being answered. All other
    requests continue an unfinished one, also at random. All of this depends only on earlier
    requests. A conversation that would become too long with its next turn starts over with it.

    Args:
        new: tokens that each request adds to its conversation; on their own not too long.
        outputs: tokens of the answers, which are part of later prompts.

    Raises:
        BenchmarkError: all second turns would have been too long.
    """
    numbers = count()
    made: list[Turn] = []
    unfinished: list[tuple[Turn, int]] = []  # the last turn of each, and how many are to come
    cut = False
    chances = rng.random((len(new), 2)).tolist()
    for added, answer, (begin, which) in zip(new.tolist(), outputs.tolist(), chances, strict=True):
        turn, left = None, turns
        if len(unfinished) > min(len(made) // turns, _MIN_UNFINISHED) and begin * turns >= 1:
            before, left = unfinished.pop(int(which * len(unfinished)))
            turn = _next(before, added, answer, max_prompt, max_total)
            cut = cut or turn is None
        if turn is None:
            turn = Turn(added, answer, next(numbers), 0)
        if left > 1:
            unfinished.append((turn, left - 1))
        made.append(turn)
    if cut and not any(turn.number for turn in made):
        limits = [
            f"{name} of {limit} tokens"
            for name, limit in (("a --max-prompt", max_prompt), ("a context", max_total))
            if limit is not None
        ]
        raise BenchmarkError(
            f"--turns {turns} has no effect: with {' and '.join(limits)}, no conversation has room "
            "for a second turn"
        )
    return made


def _next(
    before: Turn, added: int, answer: int, max_prompt: int | None, max_total: int | None
) -> Turn | None:
    """Return the next turn, or None where it would be too long."""
    prompt = before.prompt_tokens + before.output_tokens + added
    if _above(prompt, max_prompt) or _above(prompt + answer, max_total):
        return None
    return Turn(prompt, answer, before.conversation, before.number + 1)


def _above(tokens: int, limit: int | None) -> bool:
    return limit is not None and tokens > limit
