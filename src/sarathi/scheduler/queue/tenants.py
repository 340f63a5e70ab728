"""Fair shares of the machine between tenants."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable

_SPARE = 1024  # idle tenants whose counters are kept


class FairShares:
    """Counts the tokens computed for each tenant, so that the least served can go next.

    Virtual token counters (Sheng et al., OSDI'24), charged for every chunk instead of every
    request: a tenant that has prompts to compute at all times is never behind another by more
    than a chunk. A tenant that returns after a pause starts level with the least served of the
    active ones, as in start-time fair queuing (Goyal et al., 1996): a pause earns no credit.
    """

    def __init__(self) -> None:
        self._served: defaultdict[str, int] = defaultdict(int)  # tokens
        self._open: Counter[str] = Counter()  # requests
        self._waiting: set[str] = set()
        # Every tenant with waiting requests, and some without; counts may be out of date.
        self._heap: list[tuple[int, str]] = []
        self._in_heap: set[str] = set()
        self._clock = 0  # tokens that the latest selected tenant had been served

    def enter(self, tenant: str) -> None:
        """Count an arriving request of a tenant."""
        if not self._open[tenant]:
            least = min((self._served[other] for other in self._open if other != tenant), default=0)
            self._served[tenant] = max(self._served[tenant], self._clock, least)
        self._open[tenant] += 1

    def leave(self, tenant: str) -> None:
        """Count an ending request of a tenant."""
        self._open[tenant] -= 1
        if not self._open[tenant]:
            del self._open[tenant]
            self._forget_idle()

    def charge(self, tenant: str, tokens: int) -> None:
        """Count tokens computed for a tenant."""
        self._served[tenant] += tokens

    def served(self, tenant: str) -> int:
        """Return the counter of a tenant, in tokens."""
        return self._served[tenant]

    def add_waiting(self, tenant: str) -> None:
        """Note that a tenant has waiting requests."""
        self._waiting.add(tenant)
        if tenant not in self._in_heap:
            self._in_heap.add(tenant)
            heapq.heappush(self._heap, (self._served[tenant], tenant))

    def remove_waiting(self, tenant: str) -> None:
        """Note that a tenant has no waiting request any more."""
        self._waiting.discard(tenant)

    def least_served(self, others: Iterable[str], waiting: bool) -> str | None:
        """Return the least served of `others` and, if `waiting`, of those with waiting requests."""
        candidates = [(self._served[tenant], tenant) for tenant in others]
        if waiting and (first := self._first_waiting()) is not None:
            candidates.append(first)
        return min(candidates)[1] if candidates else None

    def select(self, tenant: str) -> None:
        """Note that a tenant is served next: returning tenants start level with it."""
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
        if not self._open:
            self._served.clear()
            self._clock = 0
        elif len(self._served) > 2 * len(self._open) + _SPARE:
            for tenant in self._served.keys() - self._open.keys():
                del self._served[tenant]
