"""How many tokens each word takes, found with few counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# Words are counted after another, since tokenizers treat the first one of a text differently.
_BEFORE = "The"


def costs_of(
    words: Sequence[str], marks: Sequence[str], count: Callable[[str], int]
) -> dict[str, int]:
    """Tokens that each word or mark adds to a text that goes before, at least 1.

    Most common words are one token, so that they are counted many at a time: where their number
    of tokens is their number, each has one. Otherwise, halves of them are looked at.

    Args:
        words: with the space before each.
        marks: of punctuation, which are counted one by one, as they may merge with each other.
    """
    before = count(_BEFORE)
    costs: dict[str, int] = {}

    def find(some: Sequence[str]) -> None:
        total = count(_BEFORE + "".join(some)) - before
        if total == len(some) or len(some) == 1:
            costs.update(dict.fromkeys(some, max(1, total // len(some))))
            return
        half = len(some) // 2
        find(some[:half])
        find(some[half:])

    find(words)
    for mark in marks:
        costs[mark] = max(1, count(_BEFORE + mark) - before)
    return costs
