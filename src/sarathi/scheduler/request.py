"""One request as the scheduler sees it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class StopCriteria:
    """When an output ends."""

    max_tokens: int
    min_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()  # end-of-sequence and stop tokens


@dataclass(frozen=True, slots=True)
class SchedulingParams:
    """What a caller asks of the scheduler beside its tokens."""

    priority: int = 0  # less goes first, as in vLLM
    tenant: str = ""  # who shares the machine fairly with others
    ttft_target: float | None = None  # seconds from arrival to the first token
    tbt_target: float | None = None  # seconds between tokens; None: the engine's own


class Rank(NamedTuple):
    """Where a request stands among others; less goes first."""

    lane: int  # nobody is given a share at the expense of a lesser lane
    key: float
    id: int


_UNRANKED = Rank(0, 0.0, 0)


@dataclass(eq=False, slots=True)
class Request:
    """Tokens, and how many of them have their keys and values in the cache.

    `num_computed` is the only progress there is. A prompt not yet begun, a chunk in the middle of
    one, the recompute after a preemption and the resumption of an interrupted output are all
    "`num_computed` is less than `num_tokens`", so preemption never rewrites a request.
    """

    id: int
    prompt_ids: Sequence[int]
    stop_criteria: StopCriteria
    arrival: float  # seconds; orders requests first come, first served
    scheduling_params: SchedulingParams = SchedulingParams()
    output_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    num_preemptions: int = 0
    num_recomputed: int = 0  # tokens that had been computed when it was preempted, at most
    in_flight: int = 0  # tokens in batches that have not been completed
    num_pending: int = 0  # tokens that those batches will sample, where the scheduler looks ahead
    cancelled: bool = False

    # Kept by the scheduler.
    rank: Rank = _UNRANKED
    tbt_target: float = math.inf  # seconds, its own or the engine's
    deadline: float = math.inf  # seconds; when its next token should come, once it has one
    num_cached: int = 0  # tokens found in the prefix cache when it was first admitted
    first_scheduled_at: float | None = (
        None  # seconds; begin of the iteration that first computed some of it
    )
    block_hashes: list[bytes] = field(default_factory=list)  # names of its full blocks
    num_published: int = 0  # blocks whose content others may use

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_scheduled(self) -> int:
        """Tokens that are computed, or in a batch under way that will compute them."""
        return self.num_computed + self.in_flight

    @property
    def next_is_decode(self) -> bool:
        """Whether batches under way leave one token to compute, which the last of them samples."""
        known = len(self.prompt_ids) + len(self.output_ids)
        return (
            self.num_computed + self.in_flight == known + self.num_pending - 1
            and len(self.output_ids) + self.num_pending < self.stop_criteria.max_tokens
            and not self.cancelled
        )

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be sampled."""
        return len(self.prompt_ids) + len(self.output_ids) - self.num_computed

    @property
    def is_decode(self) -> bool:
        return self.remaining == 1 and bool(self.output_ids)

    @property
    def max_num_tokens(self) -> int:
        return len(self.prompt_ids) + self.stop_criteria.max_tokens

    @property
    def scheduling_delay(self) -> float | None:
        """Seconds from arrival to the iteration that first computed some of it; None before it."""
        return None if self.first_scheduled_at is None else self.first_scheduled_at - self.arrival

    def tokens(self, start: int, length: int) -> Sequence[int]:
        """`length` token ids from position `start`, across the prompt's end where need be."""
        stop = start + length
        split = len(self.prompt_ids)
        if start >= split:
            return self.output_ids[start - split : stop - split]
        if stop <= split:
            return self.prompt_ids[start:stop]
        return [*self.prompt_ids[start:], *self.output_ids[: stop - split]]

    def finish_reason(self) -> FinishReason | None:
        """Why the latest token ends the request, None where it goes on."""
        generated = len(self.output_ids)
        if not generated:
            return None
        stops = self.output_ids[-1] in self.stop_criteria.stop_ids
        if stops and generated > self.stop_criteria.min_tokens:
            return "stop"
        return "length" if generated >= self.stop_criteria.max_tokens else None
