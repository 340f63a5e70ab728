"""The choice of a replica for each request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from sarathi.fleet.router import Assignment, LeastWork
from sarathi.scheduler import LatencyModel, Request


class Router(Protocol):
    """Sees of a request what a real router would: its prompt, not how long its answer will be."""

    def choose(self, request: Request) -> int:
        """Return the index of a replica."""

    def started(self, replica: int, request: Request) -> None:
        """Record that its first token has been sampled."""

    def ended(self, replica: int, request: Request) -> None:
        """Record that it has ended."""


class RoundRobin:
    """One replica after the other."""

    def __init__(self, replicas: int, model: LatencyModel) -> None:
        self._replicas = replicas
        self._next = 0

    def choose(self, request: Request) -> int:
        chosen, self._next = self._next, (self._next + 1) % self._replicas
        return chosen

    def started(self, replica: int, request: Request) -> None:
        pass

    def ended(self, replica: int, request: Request) -> None:
        pass


class LeastOutstanding:
    """The replica with the fewest requests that have not ended."""

    def __init__(self, replicas: int, model: LatencyModel) -> None:
        self._open = [0] * replicas

    def choose(self, request: Request) -> int:
        chosen = self._open.index(min(self._open))
        self._open[chosen] += 1
        return chosen

    def started(self, replica: int, request: Request) -> None:
        pass

    def ended(self, replica: int, request: Request) -> None:
        self._open[replica] -= 1


class LeastPredicted:
    """The replica that would finish all its requests first: the fleet's own router, `LeastWork`.

    Prompts have no text here, so prefixes do not attract requests to a replica.
    """

    def __init__(self, replicas: int, model: LatencyModel) -> None:
        self._router = LeastWork()
        self._assigned: dict[int, Assignment] = {}  # by request id
        for replica in range(replicas):
            self._router.add(replica, model)

    def choose(self, request: Request) -> int:
        assignment = self._router.assign(request.num_tokens)
        self._assigned[request.id] = assignment
        return assignment.engine

    def started(self, replica: int, request: Request) -> None:
        self._router.started(self._assigned[request.id])

    def ended(self, replica: int, request: Request) -> None:
        self._router.ended(self._assigned.pop(request.id), len(request.output_ids))


ROUTERS: Mapping[str, Callable[[int, LatencyModel], Router]] = {
    "round_robin": RoundRobin,
    "least_outstanding": LeastOutstanding,
    "least_work": LeastPredicted,
}
