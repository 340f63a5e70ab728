"""The requests that run: those that decode, and who gives way when memory runs out."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from sarathi.scheduler.batch import Slice
from sarathi.scheduler.kv.request_memory import KvMemory
from sarathi.scheduler.queue.waiting_queue import Prompts, by_rank
from sarathi.scheduler.request import Request


class DecodeSlices(NamedTuple):
    slices: list[Slice]
    context: int  # tokens in the KV cache, of all
    due: float  # when the most urgent should have its token, infinite without any
    interval: float  # seconds within which the most urgent should get its token after a pending one
    preempted: list[Request]  # to make room for the others


class Running:
    """All requests that have been admitted."""

    def __init__(self, memory: KvMemory, prompts: Prompts) -> None:
        self.decodes: list[Request] = []  # by rank
        self.num_preemptions = 0
        self._memory = memory
        self._prompts = prompts

    def __len__(self) -> int:
        return len(self.decodes) + len(self._prompts.started)

    def requests(self) -> list[Request]:
        """By rank. For looking at: O(n log n)."""
        return sorted([*self.decodes, *self._prompts.started], key=by_rank)

    def can_look_ahead(self) -> bool:
        """Return whether there are blocks for one more token of every request that decodes.

        Otherwise some request has to be preempted, and none in flight can be.
        """
        available = self._memory.pool.num_available
        if available >= len(self.decodes):
            return True
        lacking = (self._memory.lacking(r, r.num_scheduled + 1) for r in self.decodes)
        return sum(lacking) <= available

    def decode(self, micro_batches: int = 1, *, look_ahead: bool = False) -> DecodeSlices:
        """A slice for each request that decodes, and its block where it needs a new one.

        Where no block is to be had, the last in order gives up its own and is computed again
        later (preemption by recompute).

        Args:
            micro_batches: over so many batches under way are decodes spread, so that none of them
                takes what the others then lack.
            look_ahead: also those whose latest token is still being sampled, which needs
                `can_look_ahead`.
        """
        most = -(-len(self.decodes) // micro_batches)
        slices: list[Slice] = []
        preempted: list[Request] = []
        context = 0
        due = interval = math.inf
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
            elif request.deadline < due:
                due = request.deadline
            request.in_flight = in_flight + 1
            context += start
            slices.append(Slice(request, start, 1, True))
        return DecodeSlices(slices, context, due, interval, preempted)

    def end_prefill(self, request: Request) -> None:
        """Move a started prompt that has reached its end to those that decode."""
        self._prompts.started.remove(request)
        insort(self.decodes, request, key=by_rank)

    def resume_prefill(self, request: Request) -> None:
        """Take back `end_prefill`, where the batch that was to reach the end is given up."""
        self.decodes.remove(request)
        insort(self._prompts.started, request, key=by_rank)

    def idle(self) -> Iterator[Request]:
        """Those whose blocks nobody is using."""
        return (r for r in chain(self.decodes, self._prompts.started) if not r.in_flight)

    def preempt(self, request: Request) -> None:
        """Take a request's blocks; it waits, and stands where it did in order."""
        request.num_recomputed = max(request.num_recomputed, request.num_computed)
        self.leave(request)
        request.num_preemptions += 1
        self.num_preemptions += 1
        self._prompts.add(request)

    def leave(self, request: Request) -> None:
        self._memory.release(request)
        started = self._prompts.started
        (started if request in started else self.decodes).remove(request)

    def _grow(self, request: Request, preempted: list[Request]) -> bool:
        """Give a decode its next block; False if it has been preempted itself."""
        memory = self._memory
        num_tokens = request.num_scheduled + 1
        while memory.lacking(request, num_tokens) > memory.pool.num_available:
            victim = max(self.idle(), key=by_rank)  # the last in order, perhaps itself
            self.preempt(victim)
            preempted.append(victim)
            if victim is request:
                return False
        memory.extend(request, num_tokens)
        return True
