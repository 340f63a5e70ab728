"""Runners keep steps in flight: one on a single executor, one per stage of a pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from sarathi.backends.step import I64, Step
from sarathi.models.weights import Array
from sarathi.sampling.sampler import RequestSlots, Sampler, SamplerOutput
from sarathi.telemetry.recorder import StageTime


class StepResult(NamedTuple):
    """The result of a step."""

    sampled: SamplerOutput  # a token for each of the step's sampled rows
    stages: tuple[StageTime, ...]
    sampling: float = 0.0  # seconds that sampling took after the last stage


NO_SLOTS: I64 = np.empty(0, np.int64)
NOTHING_SAMPLED = SamplerOutput(NO_SLOTS, None)


class Runner(Protocol):
    """Runs steps in the order in which they are submitted, and samples from their logits."""

    depth: int  # steps that may be in flight
    looks_ahead: bool  # whether a step may refer to tokens that the previous step samples

    @property
    def sampler_slots(self) -> RequestSlots:
        """The sampler's slots, of the requests whose tokens are sampled."""

    @property
    def is_free(self) -> bool:
        """Whether a step would start at once: fewer than `depth` are in flight, and the first
        stage has computed them all. A step that is scheduled earlier leaves out requests that
        arrive meanwhile, and takes longer than the scheduler predicts."""

    def submit(self, step: Step, slots: I64 = NO_SLOTS) -> None:
        """Start a step, or keep it until `result`; at most `depth` may be in flight.

        Args:
            slots: of the requests of the sampled rows, all different, open until the result has
                been returned. Empty for a step without sampling.

        Raises:
            StepError: it is malformed; nothing has been started.
        """

    def wait(self, seconds: float) -> bool:
        """Wait until the oldest step in flight has a result, until `is_free` turns true, or for
        `seconds`; return whether there is a result.

        Raises:
            ExecutorError: a worker process has died or failed, now or before.
        """

    def result(self) -> StepResult:
        """Return the result of the oldest step in flight, once computed; errors as for `wait`."""

    def abandon(self) -> None:
        """Discard the steps in flight; returns when none of them uses the KV cache any more."""

    def check(self) -> None:
        """Check the worker processes, when no step is in flight; errors as for `wait`."""

    def close(self) -> None:
        """End the worker processes. Harmless twice."""


class StepExecutor(Protocol):
    """A whole model in this process; see `executor.Executor`."""

    def execute(self, step: Step) -> Array: ...


class InlineRunner:
    """One executor that has the whole model: a step is computed when its result is requested."""

    depth = 1
    looks_ahead = False

    def __init__(
        self,
        executor: StepExecutor,
        sampler: Sampler,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._executor = executor
        self._sampler = sampler
        self._clock = clock
        self._step: Step | None = None
        self._slots = NO_SLOTS
        self._last_end: float | None = None

    @property
    def sampler_slots(self) -> RequestSlots:
        return self._sampler

    @property
    def is_free(self) -> bool:
        return self._step is None

    def submit(self, step: Step, slots: I64 = NO_SLOTS) -> None:
        self._step, self._slots = step, slots

    def wait(self, seconds: float) -> bool:
        return True

    def result(self) -> StepResult:
        assert self._step is not None
        step, self._step = self._step, None
        start = self._clock()
        logits = self._executor.execute(step)
        end = self._clock()
        waited = 0.0 if self._last_end is None else start - self._last_end
        self._last_end = end
        sampled = NOTHING_SAMPLED
        if len(self._slots):
            sampled = self._sampler.sample(logits, self._slots)
        return StepResult(sampled, (StageTime(waited, end - start),), self._clock() - end)

    def abandon(self) -> None:
        self._step = None

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass
