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
        self._queued: list[tuple[int, str]] = []  # a heap; what was served may have grown since
        self._in_queue: set[str] = set()
        self._clock = 0  # what the tenant that went latest had been served

    def enter(self, tenant: str) -> None:
        """A request of a tenant arrives."""
        if not self._open[tenant]:
            self._served[tenant] = max(self._served[tenant], self._clock)
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
        if tenant not in self._in_queue:
            self._in_queue.add(tenant)
            heapq.heappush(self._queued, (self._served[tenant], tenant))

    def unqueue(self, tenant: str) -> None:
        """It has none any more."""
        self._in_queue.discard(tenant)

    def least(self, others: Iterable[str], queued: bool) -> str | None:
        """The least served of `others` and, if `queued`, of those that have requests waiting."""
        candidates = [(self._served[tenant], tenant) for tenant in others]
        if queued and (first := self._first_queued()) is not None:
            candidates.append(first)
        if not candidates:
            return None
        served, tenant = min(candidates)
        self._clock = max(self._clock, served)
        return tenant

    def _first_queued(self) -> tuple[int, str] | None:
        heap = self._queued
        while heap:
            served, tenant = heap[0]
            if tenant not in self._in_queue:
                heapq.heappop(heap)
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
