"""One engine: the real scheduler, and a pipeline whose stages are queues."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sarathi.bench.results import ReplicaUse
from sarathi.scheduler import Batch, Request
from sarathi.simulator.cost_model import BatchShape, stage_seconds
from sarathi.simulator.setup import Setup


class CompletedBatch(NamedTuple):
    """A batch that has left the last stage. Times are seconds of the virtual clock."""

    batch: Batch
    began: float
    ended: float
    sampled: Sequence[Request]  # have got a token


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

    def __init__(self, setup: Setup, prefix_caching: bool, seed: int) -> None:
        """Make the scheduler of a setup.

        Args:
            prefix_caching: see `Setup.scheduler`.
            seed: of the noise in the times of iterations.
        """
        self.scheduler = setup.scheduler(prefix_caching)
        self._cost = setup.cost
        # Where no decision depends on it, observing the times changes nothing.
        self._model = self.scheduler.latency_model if setup.learns else None
        self._jitter = None if setup.noise is None else setup.noise.jitter(seed)
        self._free = [0.0] * setup.cost.num_stages  # when each stage is free
        self._in_flight: deque[_InFlight] = deque()
        # What the replica does with its time and memory.
        self._busy = [0.0] * setup.cost.num_stages
        self._overhead = self._active = self._seen = self._block_seconds = 0.0
        self._active_since: float | None = None
        self._iterations = self._tokens = self._decodes = self._most_blocks = 0

    def add(self, request: Request, now: float) -> None:
        """Add a request.

        Raises:
            AdmissionError: it can never run.
        """
        self.scheduler.add(request)
        if self._active_since is None:
            self._active_since = self._seen = now

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

    def end(self, now: float) -> Iterator[CompletedBatch]:
        """Complete the micro-batches that have left the last stage by now, one at a time."""
        scheduler, pool = self.scheduler, self.scheduler.pool
        while self._in_flight and self._in_flight[0].ends <= now:
            batch, began, ends, in_stage = self._in_flight.popleft()
            blocks = pool.num_blocks - pool.num_free
            self._block_seconds += blocks * (ends - self._seen)
            self._seen = ends
            self._most_blocks = max(self._most_blocks, blocks)
            sampled = scheduler.complete(batch, (0,) * batch.work.samples, ends)
            yield CompletedBatch(batch, began, ends, sampled)
            if self._model is not None:
                # With one stage, an iteration is all that passes between two tokens.
                spent = ends - began if len(self._free) == 1 else in_stage
                self._model.observe(batch.work, spent)
            if not scheduler.has_work and self._active_since is not None:
                self._active += ends - self._active_since
                self._active_since = None

    def _compute(self, batch: Batch, now: float) -> float:
        """Return when the batch leaves the last stage."""
        shape = BatchShape.of(batch)
        cost, free, busy = self._cost, self._free, self._busy
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
            busy[stage] += spent
            at += hop
        self._overhead += overhead
        self._iterations += 1
        self._tokens += shape.tokens
        self._decodes += shape.num_decodes
        in_stage = stage_seconds(overhead, seconds, hop)
        self._in_flight.append(_InFlight(batch, now, free[-1], in_stage))
        return free[-1]

    @property
    def use(self) -> ReplicaUse:
        """What the replica has done with its time and memory, once it is idle."""
        active, blocks = self._active, self.scheduler.pool.num_blocks
        return ReplicaUse(
            iterations=self._iterations,
            tokens=self._tokens,
            decodes=self._decodes,
            preemptions=self.scheduler.running.num_preemptions,
            active=active,
            busy=self._busy,
            bubbles=[max(0.0, active - busy) for busy in self._busy],
            overhead=self._overhead,
            kv_mean=self._block_seconds / (active * blocks) if active else 0.0,
            kv_max=self._most_blocks / blocks,
        )
