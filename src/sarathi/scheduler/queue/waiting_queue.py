"""The requests that wait to be admitted, for the first time or after a preemption."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from sarathi.scheduler.queue.tenants import FairShares
from sarathi.scheduler.request import Rank, Request, by_rank


class TenantQueue:
    """The waiting requests of one tenant, by rank and by length. All operations are O(log n)."""

    def __init__(self) -> None:
        # A removed request stays in the heaps until it reaches the top; an entry counts only if
        # its ticket is the request's latest.
        self._tickets: dict[Request, int] = {}
        self._by_rank: list[tuple[Rank, int, Request]] = []
        self._by_length: list[tuple[int, int, Rank, int, Request]] = []
        self._ticket = 0

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._tickets)

    def __contains__(self, request: Request) -> bool:
        return request in self._tickets

    def add(self, request: Request) -> None:
        """Add a request, at the position that its rank gives."""
        self._ticket += 1
        self._tickets[request] = self._ticket
        rank = request.rank
        heapq.heappush(self._by_rank, (rank, self._ticket, request))
        length = (rank.priority_class, request.num_tokens, rank, self._ticket, request)
        heapq.heappush(self._by_length, length)

    def remove(self, request: Request) -> None:
        """Remove a request."""
        del self._tickets[request]
        if len(self._by_rank) + len(self._by_length) > 4 * len(self._tickets) + 64:
            self._by_rank = [e for e in self._by_rank if self._is_valid(e[-1], e[-2])]
            self._by_length = [e for e in self._by_length if self._is_valid(e[-1], e[-2])]
            heapq.heapify(self._by_rank)
            heapq.heapify(self._by_length)

    def first(self) -> Request:
        """Return the request of the lowest rank. The queue must not be empty."""
        while not self._is_valid(self._by_rank[0][-1], self._by_rank[0][-2]):
            heapq.heappop(self._by_rank)
        return self._by_rank[0][-1]

    def shortest(self) -> Request:
        """Return the request with the fewest tokens in the priority class of the first."""
        while not self._is_valid(self._by_length[0][-1], self._by_length[0][-2]):
            heapq.heappop(self._by_length)
        return self._by_length[0][-1]

    def _is_valid(self, request: Request, ticket: int) -> bool:
        return self._tickets.get(request) == ticket


class WaitingQueue:
    """All waiting requests, in one queue for each tenant."""

    def __init__(self, *, fair: bool) -> None:
        """Make an empty queue.

        Args:
            fair: whether tenants share the prompt work; otherwise all requests count as one's.
        """
        self.shares = FairShares()
        self._fair = fair
        self._queues: dict[str, TenantQueue] = {}
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def __contains__(self, request: Request) -> bool:
        queue = self._queues.get(self.tenant_of(request))
        return queue is not None and request in queue

    def requests(self) -> list[Request]:
        """Return all by rank, in O(n log n): for tests and displays."""
        return sorted((r for queue in self._queues.values() for r in queue), key=by_rank)

    def tenant_of(self, request: Request) -> str:
        """Return the tenant whose share a request uses."""
        return request.scheduling_params.tenant if self._fair else ""

    def add(self, request: Request) -> None:
        """Queue a request."""
        tenant = self.tenant_of(request)
        self._queues.setdefault(tenant, TenantQueue()).add(request)
        self.shares.add_waiting(tenant)
        self._num_waiting += 1

    def dequeue(self, request: Request) -> None:
        """Remove a request that is admitted, or ends."""
        tenant = self.tenant_of(request)
        queue = self._queues[tenant]
        queue.remove(request)
        self._num_waiting -= 1
        if not queue:
            del self._queues[tenant]
            self.shares.remove_waiting(tenant)

    def queue_of(self, tenant: str) -> TenantQueue | None:
        """Return a tenant's queue, None if it is empty."""
        return self._queues.get(tenant)

    def first(self, prefills: Iterable[Request]) -> Request | None:
        """Return the first waiting request of the least served tenant.

        Args:
            prefills: running requests with prompt to compute: None is returned if the least
                served tenant has only these.
        """
        tenants = {self.tenant_of(request) for request in prefills}
        least_served = self.shares.least_served(tenants, waiting=True)
        queue = None if least_served is None else self._queues.get(least_served)
        return None if queue is None else queue.first()

    def charge(self, request: Request, tokens: int) -> None:
        """Count tokens that are computed for a request's tenant."""
        self.shares.charge(self.tenant_of(request), tokens)
