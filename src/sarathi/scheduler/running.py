"""The admitted requests: their decodes, and preemption when memory runs out."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from sarathi.scheduler.batch import NO_WORK, Slice
from sarathi.scheduler.budget.latency_model import Work
from sarathi.scheduler.kv.block_pool import RequestMemory
from sarathi.scheduler.queue.waiting_queue import WaitingQueue
from sarathi.scheduler.request import Request, by_rank


class Decodes(NamedTuple):
    """The decodes of one iteration."""

    slices: list[Slice]
    work: Work
    slack: float | None  # seconds that the iteration may take; None if no request decodes
    preempted: list[Request]  # to free blocks for the others


NO_DECODES = Decodes([], NO_WORK, None, [])


class RunningRequests:
    """Admitted requests, by rank: `prefills` have prompt tokens to compute, `decodes` do not."""

    def __init__(self, memory: RequestMemory, waiting: WaitingQueue) -> None:
        self.decodes: list[Request] = []
        self.prefills: list[Request] = []
        self.num_preemptions = 0
        self._memory = memory
        self._waiting = waiting

    def __len__(self) -> int:
        return len(self.decodes) + len(self.prefills)

    def requests(self) -> list[Request]:
        """Return all by rank, in O(n log n): for tests and displays."""
        return sorted([*self.decodes, *self.prefills], key=by_rank)

    def schedule_decodes(
        self, now: float, micro_batches: int = 1, *, look_ahead: bool = False
    ) -> Decodes:
        """Make a slice for each request that decodes, with a new block if it needs one.

        If there is no free block, the last request in order is preempted and recomputed later.

        Args:
            micro_batches: batches in flight that the decodes are spread over, so that none of
                them takes the decodes that the others then lack.
            look_ahead: include requests whose latest token is still being sampled. This needs
                `can_look_ahead`.
        """
        most = -(-len(self.decodes) // micro_batches)
        slices: list[Slice] = []
        preempted: list[Request] = []
        context = 0
        deadline = interval = math.inf
        block_size = self._memory.pool.block_size
        for request in self.decodes:
            in_flight = request.in_flight
            if in_flight and not (look_ahead and request.next_is_decode):
                continue
            if len(slices) == most:
                break
            start = request.num_computed + in_flight
            if start == len(request.blocks) * block_size and not self._grow(request, preempted):
                continue
            if in_flight:
                interval = min(interval, request.tbt_target)
            elif request.deadline < deadline:
                deadline = request.deadline
            request.in_flight = in_flight + 1
            context += start
            slices.append(Slice(request, start, 1, True))
        slack = None
        if slices:
            slack = min(deadline - now, interval)
        elif self.decodes:
            # All are in flight in other micro-batches, and follow this one next time.
            slack = min(request.tbt_target for request in self.decodes)
        return Decodes(slices, Work(len(slices), 0.0, context, len(slices)), slack, preempted)

    def can_look_ahead(self) -> bool:
        """Return whether there are blocks for one more token of every request that decodes.

        Otherwise some request has to be preempted, and none in flight can be.
        """
        available = self._memory.pool.num_available
        if available >= len(self.decodes):
            return True
        missing = (self._memory.missing_to_grow(r, r.num_scheduled + 1) for r in self.decodes)
        return sum(missing) <= available

    def add(self, request: Request) -> None:
        """Add a request that has been admitted."""
        insort(self.prefills, request, key=by_rank)

    def end_prefill(self, request: Request) -> None:
        """Move a request whose prefill is complete, or in flight, to those that decode."""
        self.prefills.remove(request)
        insort(self.decodes, request, key=by_rank)

    def resume_prefill(self, request: Request) -> None:
        """Undo `end_prefill`, because the batch with the end of the prompt was abandoned."""
        self.decodes.remove(request)
        insort(self.prefills, request, key=by_rank)

    def idle(self) -> Iterator[Request]:
        """Iterate over the requests that are not in flight."""
        return (r for r in chain(self.decodes, self.prefills) if not r.in_flight)

    def preempt(self, request: Request) -> None:
        """Free a request's blocks and queue it again; it keeps its rank."""
        request.computed_at_preemption = max(request.computed_at_preemption, request.num_computed)
        self.remove(request)
        request.num_preemptions += 1
        self.num_preemptions += 1
        self._waiting.add(request)

    def remove(self, request: Request) -> None:
        """Remove a request and free its blocks."""
        self._memory.release(request)
        (self.prefills if request in self.prefills else self.decodes).remove(request)

    def _grow(self, request: Request, preempted: list[Request]) -> bool:
        """Allocate the next block of a decode; False if the decode itself was preempted."""
        memory = self._memory
        num_tokens = request.num_scheduled + 1
        while memory.missing_to_grow(request, num_tokens) > memory.pool.num_available:
            last = max(self.idle(), key=by_rank)
            self.preempt(last)
            preempted.append(last)
            if last is request:
                return False
        memory.extend(request, num_tokens)
        return True
