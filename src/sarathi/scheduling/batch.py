"""What one iteration computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sarathi.scheduling.request import Request


class Slice(NamedTuple):
    """`length` tokens of a request from position `start`: a decode, a chunk or a whole prompt."""

    request: Request
    start: int
    length: int
    samples: bool  # reaches the end of the request, so its last row yields a new token


@dataclass(frozen=True, slots=True)
class Batch:
    """The slices of one iteration, decodes first. May be empty of slices after preemptions."""

    id: int
    slices: tuple[Slice, ...]
    num_decodes: int = 0  # the first so many slices
    preempted: tuple[Request, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(part.length for part in self.slices)

    @property
    def sampling(self) -> list[Request]:
        """The requests that get a token from this batch, in the order of its slices."""
        return [part.request for part in self.slices if part.samples]
