"""A pipeline whose stages take the times of a cost model, on a virtual clock."""

from __future__ import annotations

from collections import deque

import numpy as np

from sarathi.backends.runner import NO_SLOTS, StepResult
from sarathi.backends.step import I64, Step
from sarathi.sampling.logprobs import ScoredRows
from sarathi.sampling.sampler import Sampler, SamplerOutput
from sarathi.scheduler import Batch
from sarathi.simulator.cost_model import BatchShape
from sarathi.telemetry.recorder import StageTime
from tests.simulator.toy import ToyCost

VOCABULARY = 2999


class Clock:
    """Stands for the module `time` in the engine's loop."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Pipeline:
    """A runner that takes the times of a cost model on its clock; all tokens are 0.

    Each stage computes a step as soon as it is there and the one before is done. The engine's own
    time and the messages between stages are in the times of the first stage and of all stages.
    """

    def __init__(self, cost: ToyCost, clock: Clock) -> None:
        self.depth = cost.num_stages
        self.looks_ahead = False
        self.sampler_slots = Sampler(VOCABULARY)
        self.batch: Batch | None = None  # set when the scheduler makes one
        self.comes: float | None = None  # when to stop waiting, since a request comes
        self.most = 0  # steps that were under way
        self._cost = cost
        self._clock = clock
        self._free = [0.0] * cost.num_stages
        self._under_way: deque[tuple[float, StepResult]] = deque()

    @property
    def is_free(self) -> bool:
        return len(self._under_way) < self.depth and self._free[0] <= self._clock.now

    def submit(self, step: Step, slots: I64 = NO_SLOTS, scored: ScoredRows | None = None) -> None:
        assert self.batch is not None
        assert self.is_free
        shape, stages = BatchShape.of(self.batch), self.depth
        spent = list(self._cost.stages(shape))
        hop = self._cost.hop(shape) if stages > 1 else 0.0
        at = self._clock.now + self._cost.overhead(shape)
        for stage, seconds in enumerate(spent):
            self._free[stage] = at = max(at, self._free[stage]) + seconds
            at += hop
        spent[0] = self._cost.overhead(shape) + spent[0]
        times = tuple(StageTime(0.0, busy + hop * (stages - 1) / stages) for busy in spent)
        sampled = SamplerOutput(np.zeros(len(step.sample_rows), np.int64), None)
        self._under_way.append((self._free[-1], StepResult(sampled, times)))
        self.most = max(self.most, len(self._under_way))

    def wait(self, seconds: float) -> bool:
        now, oldest = self._clock.now, self._under_way[0][0]
        events = [oldest]
        if len(self._under_way) < self.depth and self._free[0] > now:
            events.append(self._free[0])
        if self.comes is not None:
            events.append(self.comes)
        self._clock.now = min(events)
        return oldest <= self._clock.now

    def result(self) -> StepResult:
        ends, computed = self._under_way.popleft()
        assert ends <= self._clock.now
        return computed

    def abandon(self) -> None:
        raise AssertionError("nothing goes wrong here")

    def check(self) -> None:
        """All is well."""

    def close(self) -> None:
        """There are no processes."""
