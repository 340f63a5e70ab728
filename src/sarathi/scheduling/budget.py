"""How many tokens one iteration may carry."""

from __future__ import annotations


class TokenBudget:
    """What is left of one iteration's tokens.

    Decodes are charged and never refused: when they alone exceed the budget they all run, and
    prompts get nothing in that iteration.
    """

    def __init__(self, tokens: int) -> None:
        self._left = tokens

    @property
    def left(self) -> int:
        return max(0, self._left)

    def charge(self, tokens: int) -> None:
        """Count tokens that run in any case."""
        self._left -= tokens

    def take(self, tokens: int) -> int:
        """Grant at most `tokens` of what is left; never negative."""
        granted = min(tokens, self.left)
        self._left -= granted
        return granted


class FixedBudget:
    """The paper's budget: the same number of tokens in every iteration, decodes included."""

    def __init__(self, tokens: int) -> None:
        if tokens < 1:
            raise ValueError(f"token budget is {tokens}, expected at least 1")
        self.tokens = tokens

    def open(self) -> TokenBudget:
        """The budget of one iteration."""
        return TokenBudget(self.tokens)
