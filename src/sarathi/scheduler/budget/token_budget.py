"""How much prompt one iteration may carry beside its decodes."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection
from typing import Protocol

from sarathi.scheduler.budget.latency_model import LatencyModel, Work

# What an iteration may stay behind what it could compute, to be as large as the one before; and
# how large it is made where it cannot be, so that it will be possible then.
_STEADY, _ROOM = 0.92, 0.96
_SPARE = 3  # tokens, of small iterations
_FEW = 8  # tokens, of which one more or less counts
_ONE_TOKEN = Work(1, 0.0, 0, 1)
_MOST_LATE = 0.3  # on a machine that is busier than that, no margin helps


class Pricing(Protocol):
    """What prompt tokens cost, in the unit of a budget."""

    def prompt_cost(self, tokens: int, context: int, samples: bool) -> float: ...

    def prompt_tokens(self, amount: float, context: int) -> int: ...


class PerToken:
    """A token costs one token."""

    def prompt_cost(self, tokens: int, context: int, samples: bool) -> float:
        return tokens

    def prompt_tokens(self, amount: float, context: int) -> int:
        return int(amount)


class Allowance:
    """What is left for prompts in one iteration."""

    def __init__(self, amount: float, pricing: Pricing, least: int = 0, usual: int = 0) -> None:
        """
        Args:
            amount: in the unit of `pricing`; nothing where it is negative.
            least: tokens that the first to ask gets in any case.
            usual: prompt tokens that would make the iteration as large as the one before. It is
                faster to compute the same number again than another one.
        """
        self.amount = max(0.0, amount)
        self._left = self.amount
        self._pricing = pricing
        self._least = least
        self._usual = usual
        self._granted = 0
        self._max_tokens = sys.maxsize

    def limit(self, max_tokens: int) -> None:
        """Grant no more than so many tokens, whatever they cost, but for the first prompt."""
        self._max_tokens = max(0, max_tokens)

    @property
    def left(self) -> float:
        return max(0.0, self._left)

    def take(self, tokens: int, context: int, within: float = math.inf) -> int:
        """Grant at most `tokens`, none or more, to a prompt of which `context` are computed.

        Args:
            within: the most that they may cost.
        """
        amount = min(self.left, within) - self._pricing.prompt_cost(0, context, True)
        affordable = self._pricing.prompt_tokens(amount, context) if amount > 0 else 0
        if self._usual and affordable < tokens and within >= self.left:
            affordable = self._steady(affordable)
        granted = min(tokens, max(affordable, self._least))
        granted = min(granted, max(self._max_tokens - self._granted, self._least))
        if granted:
            self.charge(granted, context)
        return granted

    def covers(self, tokens: int, context: int) -> bool:
        return (
            self._granted + tokens <= self._max_tokens
            and self._pricing.prompt_cost(tokens, context, True) <= self._left
        )

    def charge(self, tokens: int, context: int) -> None:
        """Count tokens that run in any case."""
        self._left -= self._pricing.prompt_cost(tokens, context, True)
        self._least = 0
        self._granted += tokens

    def _steady(self, affordable: int) -> int:
        """The tokens to which to cut a prompt: the usual total, or one that can last a while."""
        total = self._granted + affordable
        if total < _FEW:
            return affordable
        least = min(_STEADY * total, total - _SPARE)
        total = self._usual if least <= self._usual <= total else int(_ROOM * total)
        return max(0, total - self._granted)


class Budget(Protocol):
    """Opens an allowance for every iteration."""

    tbt_target: float  # seconds that a decode may wait for its next token, infinite for any

    def open(
        self, decodes: Work, slack: float | None, latest: int, under_way: Collection[Work]
    ) -> Allowance:
        """
        Args:
            decodes: what runs in any case.
            slack: seconds until the most urgent decode is due; None where nobody decodes.
            latest: tokens of the batch before.
            under_way: batches that have not been completed.
        """


class FixedBudget:
    """The paper's budget: the same number of tokens in every iteration, decodes included.

    Decodes are never refused. Where they leave less, prompts together get `min_prefill_share` of
    the iteration's tokens nevertheless; 0 is the paper's rule.
    """

    tbt_target = math.inf

    def __init__(self, tokens: int, min_prefill_share: float = 0.0) -> None:
        if tokens < 1:
            raise ValueError(f"token budget is {tokens}, expected at least 1")
        self.tokens = tokens
        self.min_prefill_share = _share(min_prefill_share)

    def open(
        self, decodes: Work, slack: float | None, latest: int, under_way: Collection[Work]
    ) -> Allowance:
        floor = math.ceil(_beside(decodes.tokens, self.min_prefill_share))
        return Allowance(max(self.tokens - decodes.tokens, floor), _PER_TOKEN)


class LatencyBudget:
    """As much prompt as keeps the predicted time of an iteration within the slack of its decodes.

    With `t` the predicted time of the decodes alone, `s` the slack of the most urgent one, `e` the
    share by which one in fifty iterations lately took longer than predicted and `m` the
    `min_prefill_share`, prompts get `max(s / (1 + e) - t, t * m / (1 - m))` seconds: a share `m`
    of the iteration at least. Where nobody decodes, and at most, they get `IDLE_FACTOR` times the
    target less what any iteration takes: long enough to compute at full speed, and short enough
    for a newcomer, who has to wait until the iteration ends.
    """

    IDLE_FACTOR = 4.0

    def __init__(
        self,
        tbt_target: float,
        model: LatencyModel,
        min_prefill_share: float = 0.0,
        micro_batches: int = 1,
    ) -> None:
        """
        Args:
            tbt_target: seconds between the tokens of requests that have no target of their own.
            model: of the time in which the slowest stage of a pipeline computes a batch.
            micro_batches: under way at a time, one for each stage; a token has passed all stages
                when it comes, so that each has only a part of the time for it.
        """
        if not (tbt_target > 0 and math.isfinite(tbt_target)):
            raise ValueError(f"TBT target is {tbt_target}, expected a time above 0")
        self.tbt_target = tbt_target
        self.model = model
        self.min_prefill_share = _share(min_prefill_share)
        self._micro_batches = micro_batches

    def open(
        self, decodes: Work, slack: float | None, latest: int, under_way: Collection[Work]
    ) -> Allowance:
        usual = max(0, latest - decodes.tokens)
        spent = self.model.predict(decodes)
        # A target that is shorter than any iteration must not make prompts run token by token.
        shortest = self.model.predict(_ONE_TOKEN)
        target = self.tbt_target / self._micro_batches
        most = self.IDLE_FACTOR * max(target, shortest) - spent
        if slack is None:
            return Allowance(most, self.model, 1, usual)
        late = min(self.model.accuracy.late, _MOST_LATE)
        left = slack / (1 + late)
        stage = left / self._micro_batches
        if under_way and self._micro_batches > 1:
            # Behind each stage but the first it has to wait for those before, if they are longer.
            longest = max(map(self.model.predict, under_way))
            stage = min(stage, left - (self._micro_batches - 1) * longest)
        amount = min(stage - spent, most)
        floor = _beside(spent, self.min_prefill_share)
        least = 1 if self.min_prefill_share else 0
        if amount < floor:
            return Allowance(floor, self.model, least)
        return Allowance(amount, self.model, least, usual)


_PER_TOKEN = PerToken()


def _share(value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"the least share of prompts is {value}, expected 0 to less than 1")
    return value


def _beside(amount: float, share: float) -> float:
    """What has to be put beside `amount` to make up `share` of the whole."""
    return amount * share / (1 - share)
