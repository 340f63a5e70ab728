"""One engine: the real scheduler, and a pipeline whose stages are queues."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from sarathi.scheduler import Batch, Request, Scheduler
from sarathi.simulator.cost_model import BatchShape, CostModel, Jitter
from sarathi.simulator.latency_profile import stage_seconds
from sarathi.simulator.usage import ReplicaUsage


class Observer(Protocol):
    """Is told what became of each batch."""

    def progressed(self, requests: Sequence[Request], now: float) -> None:
        """Each of them has got a token."""

    def computed(self, batch: Batch, began: float, ended: float, scheduler: Scheduler) -> None:
        """After the scheduler has completed it."""


class _UnderWay(NamedTuple):
    batch: Batch
    began: float
    ends: float
    in_stage: float  # seconds, as `stage_seconds` has it


class SimulatedReplica:
    """A scheduler, and the stages that its micro-batches pass one after the other.

    A micro-batch begins as soon as the first stage is free and fewer are under way than there are
    stages. The engine prepares it, then each stage computes it after what came before. Nothing is
    said of when a stage is idle: that follows.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        cost: CostModel,
        observer: Observer,
        *,
        learns: bool = True,
        jitter: Jitter | None = None,
    ) -> None:
        """
        Args:
            scheduler: made for as many micro-batches as there are stages.
            learns: whether the scheduler's latency model sees the times, as the engine's does;
                where no decision depends on it, this takes time for nothing.
            jitter: None: iterations take exactly what they cost.
        """
        self.scheduler = scheduler
        self.usage = ReplicaUsage(cost.num_stages, scheduler.pool.num_blocks)
        self._cost = cost
        self._observer = observer
        self._model = scheduler.latency_model if learns else None
        self._jitter = jitter
        self._free = [0.0] * cost.num_stages  # when each stage is
        self._under_way: deque[_UnderWay] = deque()

    def add(self, request: Request, now: float) -> None:
        """
        Raises:
            AdmissionError: it can never run.
        """
        self.scheduler.add(request)
        self.usage.work_comes(now)

    def begin(self, now: float) -> list[float]:
        """Start as many micro-batches as can be, and say when to look again."""
        times: list[float] = []
        num_stages = len(self._free)
        while len(self._under_way) < num_stages and self._free[0] <= now:
            batch = self.scheduler.schedule(now)
            if batch is None:
                break
            if not batch.slices:  # somebody was preempted, and nothing more
                self.scheduler.complete(batch, (), now)
                continue
            times.append(self._compute(batch, now))
            if num_stages > 1:
                times.append(self._free[0])
        return times

    def end(self, now: float) -> None:
        """Complete the micro-batches that have left the last stage by now."""
        while self._under_way and self._under_way[0].ends <= now:
            batch, began, ends, in_stage = self._under_way.popleft()
            scheduler, pool = self.scheduler, self.scheduler.pool
            self.usage.blocks_used(pool.num_blocks - pool.num_free, ends)
            tokens = (0,) * batch.work.samples
            self._observer.progressed(scheduler.complete(batch, tokens, ends), ends)
            self._observer.computed(batch, began, ends, scheduler)
            if self._model is not None:
                # With one stage, an iteration is all that passes between two tokens.
                took = ends - began if len(self._free) == 1 else in_stage
                self._model.observe(batch.work, took)
            if not scheduler.has_work:
                self.usage.work_ends(ends)

    def _compute(self, batch: Batch, now: float) -> float:
        """When it leaves the last stage."""
        shape = BatchShape.of(batch)
        cost, usage, free = self._cost, self.usage, self._free
        overhead, seconds = cost.overhead(shape), cost.stages(shape)
        if self._jitter is not None:
            factor = self._jitter(shape)
            overhead, seconds = overhead * factor, [factor * part for part in seconds]
        hop = cost.hop(shape) if len(free) > 1 else 0.0
        at = now + overhead
        for stage, took in enumerate(seconds):
            if free[stage] > at:
                at = free[stage]
            free[stage] = at = at + took
            usage.busy[stage] += took
            at += hop
        usage.overhead += overhead
        usage.iterations += 1
        usage.tokens += shape.tokens
        usage.decodes += shape.num_decodes
        in_stage = stage_seconds(overhead, seconds, hop)
        self._under_way.append(_UnderWay(batch, now, free[-1], in_stage))
        return free[-1]
