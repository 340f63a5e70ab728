"""One request as the scheduler sees it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length"]

NO_ROWS = range(0)


@dataclass(frozen=True, slots=True)
class StopCriteria:
    """When an output ends."""

    max_tokens: int  # 0: the prompt is computed and nothing is sampled
    min_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()  # end-of-sequence and stop tokens


@dataclass(frozen=True, slots=True)
class SchedulingParams:
    """What a client asks of the scheduler."""

    priority: int = 0  # lower goes first, as in vLLM
    tenant: str = ""  # tenants share the machine fairly
    ttft_target: float | None = None  # seconds from arrival to the first token
    tbt_target: float | None = None  # seconds between tokens; None: the engine's target


class Rank(NamedTuple):
    """Position of a request in the scheduling order; lower goes first."""

    # A lower number is more urgent; the share of the shortest prompts never delays a lower number.
    priority_class: int
    key: float
    id: int


_UNRANKED = Rank(0, 0.0, 0)
by_rank = attrgetter("rank")  # sort key of requests


@dataclass(eq=False, slots=True)
class Request:
    """Tokens, and how many of them have their keys and values in the KV cache.

    `num_computed` is the only progress counter. A new prompt, a chunk in the middle of one, the
    recomputation after a preemption and the resumption of an interrupted output are all
    "`num_computed` is less than `num_tokens`", so preemption never rewrites a request.
    """

    id: int
    prompt_ids: Sequence[int]
    stop_criteria: StopCriteria
    arrival: float  # seconds
    scheduling_params: SchedulingParams = SchedulingParams()
    output_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    num_reserved: int = 0  # blocks that are reserved for the rest of its prompt
    num_preemptions: int = 0
    computed_at_preemption: int = 0  # tokens; the most, if it was preempted several times
    in_flight: int = 0  # tokens in batches that have not been completed
    num_pending: int = 0  # tokens that those batches will sample, if the scheduler looks ahead
    cancelled: bool = False
    constrained: bool = False  # by a grammar, whose masks take time

    # Set by the scheduler.
    rank: Rank = _UNRANKED
    tbt_target: float = math.inf  # seconds, its own or the engine's
    deadline: float = math.inf  # seconds; of its next token, once it has one
    num_cached: int = 0  # tokens found in the prefix cache when it was first admitted
    first_scheduled_at: float | None = None  # seconds; begin of its first iteration
    block_hashes: list[bytes] = field(default_factory=list)  # of its full blocks
    num_cached_blocks: int = 0  # blocks that other requests may share

    # Positions of the prompt whose logits are wanted, besides those to sample from, and have not
    # come yet. They are computed, not taken from the prefix cache.
    wanted: range = NO_ROWS
    pools: bool = False  # their hidden states are wanted, not their logits

    @property
    def num_tokens(self) -> int:
        """Known tokens, of prompt and output."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def max_num_tokens(self) -> int:
        """Tokens of the longest possible prompt plus output."""
        return len(self.prompt_ids) + self.stop_criteria.max_tokens

    @property
    def num_scheduled(self) -> int:
        """Tokens that are computed, or in a batch in flight that will compute them."""
        return self.num_computed + self.in_flight

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be sampled."""
        return len(self.prompt_ids) + len(self.output_ids) - self.num_computed

    @property
    def max_cached(self) -> int:
        """Tokens that may be taken from the prefix cache: none at a position that is wanted."""
        last = self.num_tokens - 1  # the next token is sampled from its logits
        return min(last, self.wanted.start) if self.wanted else last

    @property
    def is_decode(self) -> bool:
        """Whether only its latest output token is left to compute."""
        return self.remaining == 1 and bool(self.output_ids)

    @property
    def next_is_decode(self) -> bool:
        """Whether the batches in flight leave only the token that the last of them samples."""
        known = len(self.prompt_ids) + len(self.output_ids)
        return (
            self.num_computed + self.in_flight == known + self.num_pending - 1
            and len(self.output_ids) + self.num_pending < self.stop_criteria.max_tokens
            and not self.cancelled
        )

    @property
    def scheduling_delay(self) -> float | None:
        """Seconds from arrival to its first iteration; None before that."""
        return None if self.first_scheduled_at is None else self.first_scheduled_at - self.arrival

    def tokens(self, start: int, length: int) -> Sequence[int]:
        """Return `length` token ids from position `start`, of prompt and output."""
        stop = start + length
        split = len(self.prompt_ids)
        if start >= split:
            return self.output_ids[start - split : stop - split]
        if stop <= split:
            return self.prompt_ids[start:stop]
        return [*self.prompt_ids[start:], *self.output_ids[: stop - split]]

    def wanted_among(self, start: int, length: int) -> range:
        """Return the `wanted` positions of a slice of `length` tokens from `start`."""
        wanted = self.wanted
        return range(max(start, wanted.start), min(start + length, wanted.stop))

    def wanted_up_to(self, end: int) -> None:
        """Note that the `wanted` rows before position `end` have been computed."""
        self.wanted = range(max(self.wanted.start, min(end, self.wanted.stop)), self.wanted.stop)

    def finish_reason(self) -> FinishReason | None:
        """Return why the latest token ends the request, None if it does not.

        A request that samples nothing ends with its prompt.
        """
        if self.output_ids:
            return self._ends_at(self.output_ids[-1], len(self.output_ids))
        return None if self.stop_criteria.max_tokens else "length"

    def up_to_stop(self, tokens: Sequence[int]) -> Sequence[int]:
        """Return those of the next output `tokens` that come before or at the end of the output."""
        for count, token in enumerate(tokens, 1):
            if self._ends_at(token, len(self.output_ids) + count):
                return tokens[:count]
        return tokens

    def _ends_at(self, token: int, num_outputs: int) -> FinishReason | None:
        criteria = self.stop_criteria
        if token in criteria.stop_ids and num_outputs > criteria.min_tokens:
            return "stop"
        return "length" if num_outputs >= criteria.max_tokens else None
