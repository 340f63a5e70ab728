"""What one iteration computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sarathi.scheduler.budget.latency_model import Work
from sarathi.scheduler.request import Request

NO_WORK = Work(0, 0.0, 0, 0)


class Slice(NamedTuple):
    """`length` tokens of a request from position `start`: a decode, a chunk or a whole prompt."""

    request: Request
    start: int
    length: int
    samples: bool  # it reaches the end of the request, so that its last row yields a new token


@dataclass(frozen=True, slots=True)
class Batch:
    """The slices of one iteration, decodes first. Without slices if it only preempted requests."""

    id: int
    slices: tuple[Slice, ...]
    num_decodes: int = 0  # the first so many slices
    num_drafts: tuple[int, ...] = ()  # of each decode: draft tokens at its end; empty: none
    preempted: tuple[Request, ...] = ()
    work: Work = NO_WORK
    allowance: float = 0.0  # for prompts: tokens, or seconds with a latency budget
    predicted: float | None = None  # seconds, if there is a latency model

    @property
    def num_tokens(self) -> int:
        """Tokens to compute, of all slices."""
        return self.work.tokens

    @property
    def sampling(self) -> list[Request]:
        """The requests that get a token from this batch, in the order of its slices."""
        return [part.request for part in self.slices if part.samples]
