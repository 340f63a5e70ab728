"""The requests that wait to be admitted, for the first time or after a preemption.

Each tenant has a queue of its own; tenants share the machine fairly, and an order decides which
request of a tenant is next, and which may be preempted for it.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from sarathi.scheduler.budget.latency_model import LatencyModel
from sarathi.scheduler.request import Rank, Request, by_rank

RELEGATED = 1  # the priority class of requests that miss their deadline


class Order:
    """Ranks requests: first come, first served here. --order selects one of `ORDERS`."""

    preempts = False  # whether a running request is ever preempted for a waiting one

    def may_preempt(self, waiting: Request, running: Request) -> bool:
        """Return whether `running` may be preempted to admit `waiting`."""
        return False

    def rank(self, request: Request) -> Rank:
        """Return the rank of a request, fixed at its arrival."""
        return Rank(0, request.arrival, request.id)

    def misses_deadline(self, request: Request, num_computed: int, now: float) -> bool:
        """Return whether a prompt cannot be in time, even if it runs alone from `now` on."""
        return False


class Priority(Order):
    """The lowest `priority` first; first come, first served among equals."""

    preempts = True

    def may_preempt(self, waiting: Request, running: Request) -> bool:
        return running.rank.priority_class > waiting.rank.priority_class

    def rank(self, request: Request) -> Rank:
        return Rank(request.scheduling_params.priority, request.arrival, request.id)


@dataclass(frozen=True)
class Slack(Order):
    """Deadline plus remaining work, with relegation.

    Between earliest deadline first and shortest remaining time first; requests that could not get
    their first token in time even if they ran alone from now on yield to those that still can:
    the order of Niyama (Goel et al., 2025), where `alpha` weighs the work.
    """

    latency_model: LatencyModel
    ttft_target: float  # seconds, of requests without one
    alpha: float = 1.0
    preempts = True

    def may_preempt(self, waiting: Request, running: Request) -> bool:
        # A request with output continues.
        return running.rank.priority_class > waiting.rank.priority_class and not running.output_ids

    def rank(self, request: Request) -> Rank:
        work = self.latency_model.prompt_cost(request.num_tokens, 0, True)
        return Rank(0, self._deadline(request) + self.alpha * work, request.id)

    def misses_deadline(self, request: Request, num_computed: int, now: float) -> bool:
        if request.output_ids:  # recomputed after a preemption: the deadline is past
            return False
        remaining = request.num_tokens - num_computed
        work = self.latency_model.prompt_cost(remaining, num_computed, True)
        return now + work > self._deadline(request)

    def _deadline(self, request: Request) -> float:
        own = request.scheduling_params.ttft_target
        return request.arrival + (self.ttft_target if own is None else own)


ORDERS: Mapping[str, Callable[[LatencyModel, float], Order]] = {
    "fcfs": lambda model, ttft_target: Order(),
    "priority": lambda model, ttft_target: Priority(),
    "slack": Slack,
}


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
        """Make an empty queue; unless `fair`, all requests count as those of one tenant."""
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

        None if that has only running requests with prompt to compute, of which `prefills` are all.
        """
        tenants = {self.tenant_of(request) for request in prefills}
        least_served = self.shares.least_served(tenants, waiting=True)
        queue = None if least_served is None else self._queues.get(least_served)
        return None if queue is None else queue.first()

    def charge(self, request: Request, tokens: int) -> None:
        """Count tokens that are computed for a request's tenant."""
        self.shares.charge(self.tenant_of(request), tokens)
