"""One engine: the real scheduler, and a pipeline whose stages are queues."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from sarathi.bench.results import ReplicaUse
from sarathi.scheduler import Batch, Request, Scheduler
from sarathi.simulator.cost_model import BatchShape, CostModel, Jitter, stage_seconds


class BatchCallbacks(Protocol):
    """Gets the outcome of each batch."""

    def on_tokens(self, requests: Sequence[Request], now: float) -> None:
        """Handle a new token of each of the requests."""

    def on_batch(self, batch: Batch, began: float, ended: float, scheduler: Scheduler) -> None:
        """Handle a batch that the scheduler has completed."""


class _InFlight(NamedTuple):
    batch: Batch
    began: float
    ends: float
    in_stage: float  # seconds, see `stage_seconds`


class SimulatedReplica:
    """A scheduler, and the stages that its micro-batches pass one after the other.

    A micro-batch begins as soon as the first stage is free and fewer are in flight than there are
    stages. The engine prepares it, then each stage computes it after the micro-batch before. When
    stages are idle follows from that.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        cost: CostModel,
        callbacks: BatchCallbacks,
        *,
        learns: bool = True,
        jitter: Jitter | None = None,
    ) -> None:
        """Connect a scheduler with a cost model.

        Args:
            scheduler: made for as many micro-batches as there are stages.
            learns: whether the scheduler's latency model observes the times, as the engine's does;
                where no decision depends on it, this costs time and changes nothing.
            jitter: None: iterations take exactly what they cost.
        """
        self.scheduler = scheduler
        self.usage = ReplicaUsage(cost.num_stages, scheduler.pool.num_blocks)
        self._cost = cost
        self._callbacks = callbacks
        self._model = scheduler.latency_model if learns else None
        self._jitter = jitter
        self._free = [0.0] * cost.num_stages  # when each stage is free
        self._in_flight: deque[_InFlight] = deque()

    def add(self, request: Request, now: float) -> None:
        """Add a request.

        Raises:
            AdmissionError: it can never run.
        """
        self.scheduler.add(request)
        self.usage.on_work(now)

    def begin(self, now: float) -> list[float]:
        """Start as many micro-batches as possible, and return the times to look again."""
        times: list[float] = []
        num_stages = len(self._free)
        while len(self._in_flight) < num_stages and self._free[0] <= now:
            batch = self.scheduler.schedule(now)
            if batch is None:
                break
            if not batch.slices:  # a preemption, and nothing more
                self.scheduler.complete(batch, (), now)
                continue
            times.append(self._compute(batch, now))
            if num_stages > 1:
                times.append(self._free[0])
        return times

    def end(self, now: float) -> None:
        """Complete the micro-batches that have left the last stage by now."""
        while self._in_flight and self._in_flight[0].ends <= now:
            batch, began, ends, in_stage = self._in_flight.popleft()
            scheduler, pool = self.scheduler, self.scheduler.pool
            self.usage.on_blocks(pool.num_blocks - pool.num_free, ends)
            tokens = (0,) * batch.work.samples
            self._callbacks.on_tokens(scheduler.complete(batch, tokens, ends), ends)
            self._callbacks.on_batch(batch, began, ends, scheduler)
            if self._model is not None:
                # With one stage, an iteration is all that passes between two tokens.
                spent = ends - began if len(self._free) == 1 else in_stage
                self._model.observe(batch.work, spent)
            if not scheduler.has_work:
                self.usage.on_idle(ends)

    def _compute(self, batch: Batch, now: float) -> float:
        """Return when the batch leaves the last stage."""
        shape = BatchShape.of(batch)
        cost, usage, free = self._cost, self.usage, self._free
        overhead, seconds = cost.overhead(shape), cost.stages(shape)
        if self._jitter is not None:
            factor = self._jitter(shape)
            overhead, seconds = overhead * factor, [factor * part for part in seconds]
        hop = cost.hop(shape) if len(free) > 1 else 0.0
        at = now + overhead
        for stage, spent in enumerate(seconds):
            if free[stage] > at:
                at = free[stage]
            free[stage] = at = at + spent
            usage.busy[stage] += spent
            at += hop
        usage.overhead += overhead
        usage.iterations += 1
        usage.tokens += shape.tokens
        usage.decodes += shape.num_decodes
        in_stage = stage_seconds(overhead, seconds, hop)
        self._in_flight.append(_InFlight(batch, now, free[-1], in_stage))
        return free[-1]


class ReplicaUsage:
    """What a replica does with its time and memory. Times are seconds of the virtual clock."""

    def __init__(self, num_stages: int, num_blocks: int) -> None:
        self.busy = [0.0] * num_stages
        self.overhead = 0.0
        self.tokens = 0
        self.decodes = 0
        self.iterations = 0
        self._num_blocks = num_blocks
        self._active = 0.0
        self._active_since: float | None = None
        self._seen = 0.0
        self._block_seconds = 0.0
        self._most_blocks = 0

    def on_work(self, now: float) -> None:
        """Count the replica as active from now on, if it was idle."""
        if self._active_since is None:
            self._active_since = self._seen = now

    def on_blocks(self, blocks: int, now: float) -> None:
        """Count so many blocks as used since the call before."""
        self._block_seconds += blocks * (now - self._seen)
        self._seen = now
        if blocks > self._most_blocks:
            self._most_blocks = blocks

    def on_idle(self, now: float) -> None:
        """Count the replica as idle from now on."""
        if self._active_since is not None:
            self._active += now - self._active_since
            self._active_since = None

    def result(self, preemptions: int) -> ReplicaUse:
        """Return what was counted."""
        active = self._active
        return ReplicaUse(
            iterations=self.iterations,
            tokens=self.tokens,
            decodes=self.decodes,
            preemptions=preemptions,
            active=active,
            busy=self.busy,
            bubbles=[max(0.0, active - busy) for busy in self.busy],
            overhead=self.overhead,
            kv_mean=self._block_seconds / (active * self._num_blocks) if active else 0.0,
            kv_max=self._most_blocks / self._num_blocks,
        )
