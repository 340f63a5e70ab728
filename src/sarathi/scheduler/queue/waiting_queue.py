"""The requests that have prompt to compute: those that wait and those that have been started."""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Iterator

from sarathi.scheduler.queue.order import BACKGROUND
from sarathi.scheduler.queue.tenants import Shares
from sarathi.scheduler.request import Rank, Request


def by_rank(request: Request) -> Rank:
    return request.rank


class Line:
    """The waiting requests of one tenant, by rank and by length. All operations are O(log n)."""

    def __init__(self) -> None:
        # Who has left stays in the heaps until the top is reached; tickets tell who is still in.
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
        self._ticket += 1
        self._tickets[request] = self._ticket
        rank = request.rank
        heapq.heappush(self._by_rank, (rank, self._ticket, request))
        length = (rank.lane, request.num_tokens, rank, self._ticket, request)
        heapq.heappush(self._by_length, length)

    def remove(self, request: Request) -> None:
        del self._tickets[request]
        if len(self._by_rank) + len(self._by_length) > 4 * len(self._tickets) + 64:
            self._by_rank = [e for e in self._by_rank if self._holds(e[-1], e[-2])]
            self._by_length = [e for e in self._by_length if self._holds(e[-1], e[-2])]
            heapq.heapify(self._by_rank)
            heapq.heapify(self._by_length)

    def first(self) -> Request:
        """The request of the least rank. The line must not be empty, nor for `shortest`."""
        while not self._holds(self._by_rank[0][-1], self._by_rank[0][-2]):
            heapq.heappop(self._by_rank)
        return self._by_rank[0][-1]

    def shortest(self) -> Request:
        """The request with the fewest tokens in the lane of the first."""
        while not self._holds(self._by_length[0][-1], self._by_length[0][-2]):
            heapq.heappop(self._by_length)
        return self._by_length[0][-1]

    def _holds(self, request: Request, ticket: int) -> bool:
        return self._tickets.get(request) == ticket


class Prompts:
    """Waiting requests, and started ones that have not reached the end of their tokens."""

    def __init__(self, *, fair: bool) -> None:
        """
        Args:
            fair: whether tenants take turns; otherwise all requests belong to one.
        """
        self.started: list[Request] = []  # by rank
        self.shares = Shares()
        self._num_waiting = 0
        self._fair = fair
        self._lines: dict[str, Line] = {}

    def __len__(self) -> int:
        """Requests that wait."""
        return self._num_waiting

    def requests(self) -> list[Request]:
        """By rank. For looking at: O(n log n)."""
        return sorted((request for line in self._lines.values() for request in line), key=by_rank)

    def tenant(self, request: Request) -> str:
        return request.scheduling_params.tenant if self._fair else ""

    def add(self, request: Request) -> None:
        """A request begins to wait, for the first time or again."""
        tenant = self.tenant(request)
        self._lines.setdefault(tenant, Line()).add(request)
        self.shares.queue(tenant)
        self._num_waiting += 1

    def waits(self, request: Request) -> bool:
        line = self._lines.get(self.tenant(request))
        return line is not None and request in line

    def leave_line(self, request: Request) -> None:
        """A request does not wait any more."""
        tenant = self.tenant(request)
        line = self._lines[tenant]
        line.remove(request)
        self._num_waiting -= 1
        if not line:
            del self._lines[tenant]
            self.shares.unqueue(tenant)

    def start(self, request: Request) -> None:
        """A waiting request has been admitted."""
        self.leave_line(request)
        insort(self.started, request, key=by_rank)

    def charge(self, request: Request, tokens: int) -> None:
        """Count tokens that are computed for a request's tenant."""
        self.shares.charge(self.tenant(request), tokens)

    def relegate(self, request: Request) -> None:
        """Let a request go after all those that are not relegated."""
        rank = request.rank._replace(lane=BACKGROUND)
        if self.waits(request):
            self.leave_line(request)
            request.rank = rank
            self.add(request)
        else:
            request.rank = rank
            self.started.sort(key=by_rank)

    def first_waiting(self) -> Request | None:
        """The first waiting request, if its tenant is the one whose turn it is."""
        started = {self.tenant(request) for request in self.started}
        line = self._lines.get(self.shares.least(started, waiting=True) or "")
        return None if line is None else line.first()

    def line(self, tenant: str) -> Line | None:
        return self._lines.get(tenant)
