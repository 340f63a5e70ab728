"""Steps under way: one on a single executor, as many as there are stages in a pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from sarathi.backends.step import I64, Step
from sarathi.models.weights import Array
from sarathi.sampling.sampler import RequestSlots, Sampler, SamplerOutput
from sarathi.telemetry.stages import StageTime


class StepResult(NamedTuple):
    sampled: SamplerOutput  # a token for each of the step's sampled rows
    stages: tuple[StageTime, ...]
    sampling: float = 0.0  # seconds that sampling took after the last stage


NO_SLOTS: I64 = np.empty(0, np.int64)
NOTHING_SAMPLED = SamplerOutput(NO_SLOTS, None)


class Runner(Protocol):
    """Runs steps in the order in which they are submitted, and samples from their logits."""

    depth: int  # steps that may be under way
    looks_ahead: bool  # whether a step may hold tokens that the step before it samples

    @property
    def slots(self) -> RequestSlots:
        """Of the requests whose tokens are sampled."""

    @property
    def is_free(self) -> bool:
        """Whether a step would begin at once: fewer than `depth` are under way, and the first
        stage has computed them all. A step that is made earlier knows less of what has come, and
        its requests wait longer than who made it could foresee."""

    def submit(self, step: Step, slots: I64 = NO_SLOTS) -> None:
        """Begin a step; at most `depth` may be under way.

        Args:
            slots: of the requests of the sampled rows, all different, open until the result has
                been taken. None for a step whose logits are not sampled from.

        Raises:
            StepError: it is malformed; nothing has begun.
        """

    def wait(self, seconds: float) -> bool:
        """Wait until the oldest step under way has a result, until `is_free` turns true, or for
        so long.

        Returns:
            Whether there is a result.

        Raises:
            ExecutorError: a process that takes part has died or failed, now or before.
        """

    def result(self) -> StepResult:
        """Wait for the oldest step under way, and for nothing else.

        Raises:
            ExecutorError: a process that takes part has died or failed, now or before.
        """

    def abandon(self) -> None:
        """Forget the steps under way; returns when none of them touches the KV cache any more."""

    def check(self) -> None:
        """Look whether all processes that take part are well; for when nothing is under way.

        Raises:
            ExecutorError: one has died or failed.
        """

    def close(self) -> None:
        """End the processes that take part. Harmless twice."""


class StepExecutor(Protocol):
    """A whole model in this process; see `executor.Executor`."""

    def execute(self, step: Step) -> Array: ...


class InlineRunner:
    """One executor that has the whole model: a step is computed when its result is asked for."""

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
        self._ended: float | None = None

    @property
    def slots(self) -> RequestSlots:
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
        began = self._clock()
        logits = self._executor.execute(step)
        ended = self._clock()
        waited = 0.0 if self._ended is None else began - self._ended
        self._ended = ended
        sampled = NOTHING_SAMPLED
        if len(self._slots):
            sampled = self._sampler.sample(logits, self._slots)
        return StepResult(sampled, (StageTime(waited, ended - began),), self._clock() - ended)

    def abandon(self) -> None:
        self._step = None

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass
