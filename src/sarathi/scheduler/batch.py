"""What one iteration computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sarathi.scheduler.budget.latency_model import Work
from sarathi.scheduler.request import Request

NO_WORK = Work(0, 0.0, 0, 0)
DEFERRED = -2  # instead of a token that cannot be sampled yet


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
    num_scored: int = 0  # rows of logits that are wanted besides those to sample from
    num_pooled: int = 0  # rows of hidden states that are wanted
    work: Work = NO_WORK
    allowance: float = 0.0  # for prompts: tokens, or seconds with a latency budget
    predicted: float | None = None  # seconds, if there is a latency model
    constrained: int = 0  # requests that sample with a mask, which may have to be waited for

    @property
    def num_tokens(self) -> int:
        """Tokens to compute, of all slices."""
        return self.work.tokens

    @property
    def sampling(self) -> list[Request]:
        """The requests that get a token from this batch, in the order of its slices."""
        return [part.request for part in self.slices if part.samples]

    def wanted(self) -> list[tuple[int, range]]:
        """Return the slices, by index, that have positions among `Request.wanted`, and these
        positions. It is the same from when the batch is scheduled until it is completed."""
        if not (self.num_scored or self.num_pooled):
            return []
        found = []
        for index, (request, start, length, _) in enumerate(self.slices):
            if request.wanted and (positions := request.wanted_among(start, length)):
                found.append((index, positions))
        return found
