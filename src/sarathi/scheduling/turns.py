"""Whose prompt is next within one iteration."""

from __future__ import annotations

import math
from typing import NamedTuple

from sarathi.scheduling.prompts import Prompts, by_rank
from sarathi.scheduling.request import Rank, Request


class Turn(NamedTuple):
    request: Request
    within: float  # what it may cost, in the unit of the iteration's allowance


class _Tenant:
    """What is left to do for a tenant in this iteration."""

    def __init__(self) -> None:
        self.started: list[Request] = []  # by rank; those that have not had a turn
        self.in_order: float | None = None  # left of the in-order share, None before the first turn
        self.cut: Request | None = None  # who reached the end of that share


class Turns:
    """Deals turns to the least served tenant: in order at first, then the shortest first.

    Who is cut where the in-order share ends has another turn after the others of its lane.
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
            if not request.in_flight:
                self._tenant(prompts.tenant(request)).started.append(request)

    def next(self, left: float) -> Turn | None:
        """
        Args:
            left: of the iteration's allowance.
        """
        # Those who wait are looked up as they are needed: there may be thousands of them.
        ready = [name for name, mine in self._tenants.items() if mine.started or mine.cut]
        name = self._prompts.shares.least(ready, queued=self._admit)
        if name is None:
            return None
        mine = self._tenant(name)
        if mine.in_order is None:
            mine.in_order = self._share * left if self._share < 1 else math.inf
        line = self._prompts.line(name) if self._admit else None
        candidates = mine.started[:1]
        if line is not None:
            candidates.append(line.first())
        if mine.in_order > 0:
            return Turn(min(candidates, key=by_rank), mine.in_order)
        if mine.cut is not None:
            candidates.append(mine.cut)
        lane = min(request.rank.lane for request in candidates)
        others = [request for request in mine.started if request.rank.lane == lane]
        if line is not None and line.shortest().rank.lane == lane:
            others.append(line.shortest())
        if not others:
            assert mine.cut is not None
            return Turn(mine.cut, math.inf)
        return Turn(min(others, key=_length), math.inf)

    def took(self, request: Request, cost: float, *, cut: bool) -> None:
        """A request has had its turn, and reached the end of its tokens unless it was `cut`."""
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
    return request.remaining, request.rank
