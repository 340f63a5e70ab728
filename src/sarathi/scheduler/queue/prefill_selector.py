"""Whose prompt is next within one iteration."""

from __future__ import annotations

import math
from typing import NamedTuple

from sarathi.scheduler.queue.waiting_queue import Prompts, by_rank
from sarathi.scheduler.request import Rank, Request


class Turn(NamedTuple):
    request: Request
    within: float  # what it may cost, in the unit of the iteration's allowance
    ahead: Request | None = None  # waits, and is before `request`, which waits too


class _Tenant:
    """What is left to do for a tenant in this iteration."""

    def __init__(self) -> None:
        self.started: list[Request] = []  # by rank; those that have not had a turn
        self.in_order: float | None = None  # left of the in-order share, None before the first turn
        self.cut: Request | None = None  # who reached the end of that share


class PrefillSelector:
    """Deals turns to the least served tenant: in order at first, then the shortest first.

    Who is cut where the in-order share ends is among the latter, too.
    """

    def __init__(self, prompts: Prompts, *, in_order_share: float, admit: bool) -> None:
        """
        Args:
            admit: whether waiting requests have turns.
        """
        self._prompts = prompts
        self._share = in_order_share
        self._admit = admit
        self._tenants: dict[str, _Tenant] = {}
        for request in prompts.started:
            # A chunk may follow the one before into a pipeline: each stage computes them in order.
            if request.num_scheduled < request.num_tokens and not request.cancelled:
                self._tenant(prompts.tenant(request)).started.append(request)

    def next(self, left: float) -> Turn | None:
        """
        Args:
            left: of the iteration's allowance.
        """
        # Those who wait are looked up as they are needed: there may be thousands of them.
        ready = [name for name, mine in self._tenants.items() if mine.started or mine.cut]
        name = self._prompts.shares.least(ready, waiting=self._admit)
        if name is None:
            return None
        self._prompts.shares.turn(name)
        mine = self._tenant(name)
        if mine.in_order is None:
            mine.in_order = self._share * left if self._share < 1 and left else math.inf
        line = self._prompts.line(name) if self._admit else None
        candidates = mine.started[:1]
        if line is not None:
            candidates.append(line.first())
        if mine.in_order > 0:
            return Turn(min(candidates, key=by_rank), mine.in_order)
        if mine.cut is not None:
            candidates.append(mine.cut)
        lane = min(request.rank.lane for request in candidates)
        candidates = [*mine.started, *(() if mine.cut is None else (mine.cut,))]
        if line is not None:
            candidates.append(line.shortest())
        shortest = min((r for r in candidates if r.rank.lane == lane), key=_length)
        waits = line is not None and shortest is line.shortest()
        ahead = line.first() if line is not None and waits else None
        return Turn(shortest, math.inf, None if ahead is shortest else ahead)

    def took(self, request: Request, cost: float, *, cut: bool) -> None:
        """A request has had its turn, and could compute more tokens now if it was `cut`."""
        mine = self._tenant(self._prompts.tenant(request))
        assert mine.in_order is not None
        if request in mine.started:
            mine.started.remove(request)
        if request is mine.cut:
            mine.cut = None
        elif mine.in_order > 0:
            mine.in_order -= cost
            if cut:
                mine.in_order = 0.0
                mine.cut = request

    def end_in_order(self, request: Request) -> None:
        """What is left of the in-order share does not pay for a token of `request`."""
        self._tenant(self._prompts.tenant(request)).in_order = 0.0

    def relegate(self, request: Request) -> None:
        """Let a request have its turn after those that are not relegated."""
        self._prompts.relegate(request)
        self._tenant(self._prompts.tenant(request)).started.sort(key=by_rank)

    def close(self) -> None:
        """Admit nobody else."""
        self._admit = False

    def _tenant(self, name: str) -> _Tenant:
        return self._tenants.setdefault(name, _Tenant())


def _length(request: Request) -> tuple[int, Rank]:
    """As a whole: what is left would let long prompts pass short ones once they have got far."""
    return request.num_tokens, request.rank
