"""How many prompt tokens one iteration may carry beside its decodes."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection

from sarathi.scheduler.budget.latency_model import LatencyModel, Work

# An iteration may stay this far below what it could compute, to be as large as the one before; and
# how large it is made if it cannot be, so that the next ones can.
_STEADY, _NEW_STEADY = 0.92, 0.96
_SPARE = 3  # tokens, of small iterations
_FEW = 8  # tokens; in smaller iterations every token counts
_ONE_TOKEN = Work(1, 0.0, 0, 1)
_MAX_LATENESS = 0.3  # on a machine that is busier than that, no margin helps


class UnitCost:
    """What prompt tokens cost without a `LatencyModel`, which has the same methods: 1 each."""

    def prompt_cost(self, tokens: int, context: int, samples: int) -> float:
        return tokens

    def prompt_tokens(self, amount: float, context: int, *, scored: bool = False) -> int:
        return int(amount)


class Allowance:
    """What prompts may cost in one iteration."""

    def __init__(
        self,
        amount: float,
        cost: LatencyModel | UnitCost,
        min_tokens: int = 0,
        steady_tokens: int = 0,
    ) -> None:
        """Open an allowance.

        Args:
            amount: in the unit of `cost`; none if it is negative.
            min_tokens: for the first prompt, whatever they cost.
            steady_tokens: prompt tokens that would make the iteration as large as the one before.
                Computing the same number again is faster than computing another number.
        """
        self.amount = max(0.0, amount)
        self._remaining = self.amount
        self._cost = cost
        self._min_tokens = min_tokens
        self._steady_tokens = steady_tokens
        self._taken = 0
        self._max_tokens = sys.maxsize

    def limit(self, max_tokens: int) -> None:
        """Give at most `max_tokens`, whatever they cost, except to the first prompt."""
        self._max_tokens = max(0, max_tokens)

    @property
    def remaining(self) -> float:
        """What is left of the amount."""
        return max(0.0, self._remaining)

    def take(
        self, tokens: int, context: int, max_cost: float = math.inf, *, scored: bool = False
    ) -> int:
        """Take up to `tokens` for a prompt of which `context` are computed; return how many.

        They cost at most `max_cost`; `scored` ones are followed by a row of logits each.
        """
        amount = min(self.remaining, max_cost) - self._cost.prompt_cost(0, context, 1)
        affordable = 0
        if amount > 0:
            affordable = self._cost.prompt_tokens(amount, context, scored=scored)
        if self._steady_tokens and affordable < tokens and max_cost >= self.remaining:
            affordable = self._steady(affordable)
        taken = min(tokens, max(affordable, self._min_tokens))
        taken = min(taken, max(self._max_tokens - self._taken, self._min_tokens))
        if taken:
            self.charge(taken, context, scored=scored)
        return taken

    def covers(self, tokens: int, context: int, *, scored: bool = False) -> bool:
        """Return whether the rest pays for `tokens` of a prompt, all of them."""
        rows = 1 + tokens * scored
        return (
            self._taken + tokens <= self._max_tokens
            and self._cost.prompt_cost(tokens, context, rows) <= self._remaining
        )

    def charge(self, tokens: int, context: int, *, scored: bool = False) -> None:
        """Count `tokens` of a prompt that run, whether the rest pays for them or not."""
        self._remaining -= self._cost.prompt_cost(tokens, context, 1 + tokens * scored)
        self._min_tokens = 0
        self._taken += tokens

    def _steady(self, affordable: int) -> int:
        """Cut the tokens of a prompt to a steady total, that of the batch before if possible."""
        total = self._taken + affordable
        if total < _FEW:
            return affordable
        least = min(_STEADY * total, total - _SPARE)
        if least <= self._steady_tokens <= total:
            total = self._steady_tokens
        else:
            total = int(_NEW_STEADY * total)
        return max(0, total - self._taken)


class FixedBudget:
    """The paper's budget: the same number of tokens in every iteration, decodes included.

    Decodes always run. If they leave too little, prompts still get `min_prefill_share` of the
    iteration's tokens; 0 is the paper's rule.
    """

    tbt_target = math.inf  # seconds between tokens of a request: there is no target

    def __init__(self, tokens: int, min_prefill_share: float = 0.0) -> None:
        """Make a budget of `tokens` an iteration."""
        if tokens < 1:
            raise ValueError(f"token budget is {tokens}, expected at least 1")
        self.tokens = tokens
        self.min_prefill_share = _checked_share(min_prefill_share)

    def open(
        self, decodes: Work, slack: float | None, last_tokens: int, in_flight: Collection[Work]
    ) -> Allowance:
        """Return the allowance of the next iteration, with the work of its decodes.

        Args:
            slack: seconds until the deadline of the most urgent decode; None without decodes.
            last_tokens: tokens of the batch before.
            in_flight: work of the batches that have not been completed.
        """
        floor = math.ceil(_share_beside(decodes.tokens, self.min_prefill_share))
        return Allowance(max(self.tokens - decodes.tokens, floor), UnitCost())


class LatencyBudget:
    """As much prompt as keeps the predicted time of an iteration within the slack of its decodes.

    With `t` the predicted time of the decodes alone, `s` the slack of the most urgent one, `e` the
    relative lateness of recent iterations at P98 and `m` the `min_prefill_share`, prompts get
    `max(s / (1 + e) - t, t * m / (1 - m))` seconds: at least a share `m` of the iteration. Without
    decodes they get `IDLE_FACTOR` times the target less what any iteration takes, which is also the
    upper bound: long enough to compute at full speed, and short enough for a request that arrives
    meanwhile and has to wait until the iteration ends.
    """

    IDLE_FACTOR = 4.0

    def __init__(
        self,
        tbt_target: float,
        model: LatencyModel,
        min_prefill_share: float = 0.0,
        micro_batches: int = 1,
    ) -> None:
        """Make a budget for a time between tokens.

        Args:
            tbt_target: seconds between the tokens of requests without a target.
            model: predicts the time in which the slowest stage of a pipeline computes a batch.
            micro_batches: batches in flight, one for each stage. A token passes all stages, so
                that each stage has only a part of the time.
        """
        if not (tbt_target > 0 and math.isfinite(tbt_target)):
            raise ValueError(f"TBT target is {tbt_target}, expected a time above 0")
        self.tbt_target = tbt_target
        self.min_prefill_share = _checked_share(min_prefill_share)
        self._model = model
        self._micro_batches = micro_batches

    def open(
        self, decodes: Work, slack: float | None, last_tokens: int, in_flight: Collection[Work]
    ) -> Allowance:
        """Return the allowance of the next iteration; see `FixedBudget.open`."""
        model = self._model
        steady = max(0, last_tokens - decodes.tokens)
        decode_time = model.predict(decodes)
        # A target that is shorter than any iteration must not make prompts run token by token.
        shortest = model.predict(_ONE_TOKEN)
        target = self.tbt_target / self._micro_batches
        most = self.IDLE_FACTOR * max(target, shortest) - decode_time
        if slack is None:
            return Allowance(most, model, 1, steady)
        lateness = min(model.accuracy.late, _MAX_LATENESS)
        remaining = slack / (1 + lateness)
        stage = remaining / self._micro_batches
        if in_flight and self._micro_batches > 1:
            # Before each stage but the first, it waits for the batches before if they are longer.
            longest = max(map(model.predict, in_flight))
            stage = min(stage, remaining - (self._micro_batches - 1) * longest)
        amount = min(stage - decode_time, most)
        floor = _share_beside(decode_time, self.min_prefill_share)
        least = 1 if self.min_prefill_share else 0
        if amount < floor:
            return Allowance(floor, model, least)
        return Allowance(amount, model, least, steady)


Budget = FixedBudget | LatencyBudget


def _checked_share(value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"the least share of prompts is {value}, expected 0 to less than 1")
    return value


def _share_beside(amount: float, share: float) -> float:
    """Return what to add to `amount` to make up `share` of the whole."""
    return amount * share / (1 - share)
