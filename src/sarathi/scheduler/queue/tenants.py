"""Fair shares of the machine between tenants."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable

_SPARE = 1024  # tenants that are gone, before they are forgotten


class Shares:
    """Counts the tokens computed for each tenant, so that the least served can go next.

    Virtual token counters (Sheng et al., OSDI'24), charged for every chunk instead of every
    request: a tenant that has prompts to compute at all times is never behind another by more
    than a chunk. Who comes back after a pause starts level with the least served of those who
    stayed, as in start-time fair queuing (Goyal et al., 1996): pauses are not saved up.
    """

    def __init__(self) -> None:
        self._served: defaultdict[str, int] = defaultdict(int)  # tokens
        self._open: Counter[str] = Counter()  # requests
        self._waiting: set[str] = set()
        # Those that wait, and some that have left; what they were served may have grown since.
        self._heap: list[tuple[int, str]] = []
        self._in_heap: set[str] = set()
        self._clock = 0  # what the tenant that went latest had been served

    def enter(self, tenant: str) -> None:
        """A request of a tenant arrives."""
        if not self._open[tenant]:
            least = min((self._served[other] for other in self._open if other != tenant), default=0)
            self._served[tenant] = max(self._served[tenant], self._clock, least)
        self._open[tenant] += 1

    def leave(self, tenant: str) -> None:
        """A request of a tenant ends."""
        self._open[tenant] -= 1
        if not self._open[tenant]:
            del self._open[tenant]
            self._forget_idle()

    def charge(self, tenant: str, tokens: int) -> None:
        self._served[tenant] += tokens

    def served(self, tenant: str) -> int:
        return self._served[tenant]

    def queue(self, tenant: str) -> None:
        """A tenant has requests that wait."""
        self._waiting.add(tenant)
        if tenant not in self._in_heap:
            self._in_heap.add(tenant)
            heapq.heappush(self._heap, (self._served[tenant], tenant))

    def unqueue(self, tenant: str) -> None:
        """It has none any more."""
        self._waiting.discard(tenant)

    def least(self, others: Iterable[str], waiting: bool) -> str | None:
        """The least served of `others` and, if `waiting`, of those that have requests waiting."""
        candidates = [(self._served[tenant], tenant) for tenant in others]
        if waiting and (first := self._first_waiting()) is not None:
            candidates.append(first)
        return min(candidates)[1] if candidates else None

    def turn(self, tenant: str) -> None:
        """It is a tenant's turn: those who come back start from there."""
        self._clock = max(self._clock, self._served[tenant])

    def _first_waiting(self) -> tuple[int, str] | None:
        heap = self._heap
        while heap:
            served, tenant = heap[0]
            if tenant not in self._waiting:
                heapq.heappop(heap)
                self._in_heap.remove(tenant)
            elif served != self._served[tenant]:
                heapq.heapreplace(heap, (self._served[tenant], tenant))
            else:
                return heap[0]
        return None

    def _forget_idle(self) -> None:
        if not self._open:  # nobody is owed anything
            self._served.clear()
            self._clock = 0
        elif len(self._served) > 2 * len(self._open) + _SPARE:
            for tenant in self._served.keys() - self._open.keys():
                del self._served[tenant]
