"""The choice of a replica for each request."""

from __future__ import annotations

from sarathi.fleet.router import Assignment, LeastWork
from sarathi.scheduler import LatencyModel, Request


class RoundRobin:
    """One replica after the other, and the interface of the other routers.

    A router sees of a request what a real one would: its prompt, not how long its answer will be.
    """

    def __init__(self, replicas: int, model: LatencyModel) -> None:
        self._replicas = replicas
        self._next = 0

    def choose(self, request: Request) -> int:
        """Return the index of a replica."""
        chosen, self._next = self._next, (self._next + 1) % self._replicas
        return chosen

    def started(self, replica: int, request: Request) -> None:
        """Record that its first token has been sampled."""

    def ended(self, replica: int, request: Request) -> None:
        """Record that it has ended."""


class LeastOutstanding(RoundRobin):
    """The replica with the fewest requests that have not ended."""

    def __init__(self, replicas: int, model: LatencyModel) -> None:
        self._open = [0] * replicas

    def choose(self, request: Request) -> int:
        chosen = self._open.index(min(self._open))
        self._open[chosen] += 1
        return chosen

    def ended(self, replica: int, request: Request) -> None:
        self._open[replica] -= 1


class LeastPredicted(RoundRobin):
    """The replica that would finish all its requests first: the fleet's own router, `LeastWork`.

    Prompts have no text here, so prefixes do not attract requests to a replica.
    """

    def __init__(self, replicas: int, model: LatencyModel) -> None:
        self._router = LeastWork()
        self._assigned: dict[int, Assignment] = {}  # by request id
        for replica in range(replicas):
            self._router.add(replica, model)

    def choose(self, request: Request) -> int:
        assignment = self._assigned[request.id] = self._router.assign(request.num_tokens)
        return assignment.engine

    def started(self, replica: int, request: Request) -> None:
        self._router.started(self._assigned[request.id])

    def ended(self, replica: int, request: Request) -> None:
        self._router.ended(self._assigned.pop(request.id), len(request.output_ids))


ROUTERS: dict[str, type[RoundRobin]] = {
    "round_robin": RoundRobin,
    "least_outstanding": LeastOutstanding,
    "least_work": LeastPredicted,
}
