"""Steps under way: one on a single executor, as many as there are stages in a pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from sarathi.executors.step import Step
from sarathi.models.weights import Array


class StageTime(NamedTuple):
    """What one stage did for one step, in seconds."""

    waited: float  # since it had finished the step before
    busy: float


class Computed(NamedTuple):
    """What came of a step."""

    logits: Array  # float32, of the sampled rows; valid until the next result
    stages: tuple[StageTime, ...]


class Runner(Protocol):
    """Runs steps in the order in which they are submitted."""

    depth: int  # steps that may be under way

    @property
    def is_free(self) -> bool:
        """Whether a step would begin at once: fewer than `depth` are under way, and the first
        stage has computed them all. A step that is made earlier knows less of what has come, and
        its requests wait longer than who made it could foresee."""

    def submit(self, step: Step) -> None:
        """Begin a step; at most `depth` may be under way.

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

    def result(self) -> Computed:
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


class Executor(Protocol):
    """A whole model in this process; see `executor.Executor`."""

    def execute(self, step: Step) -> Array: ...


class Alone:
    """One executor that has the whole model: a step is computed when its result is asked for."""

    depth = 1

    def __init__(self, executor: Executor, clock: Callable[[], float] = time.monotonic) -> None:
        self._executor = executor
        self._clock = clock
        self._step: Step | None = None
        self._ended: float | None = None

    @property
    def is_free(self) -> bool:
        return self._step is None

    def submit(self, step: Step) -> None:
        self._step = step

    def wait(self, seconds: float) -> bool:
        return True

    def result(self) -> Computed:
        assert self._step is not None
        step, self._step = self._step, None
        began = self._clock()
        logits = self._executor.execute(step)
        ended = self._clock()
        waited = 0.0 if self._ended is None else began - self._ended
        self._ended = ended
        return Computed(logits, (StageTime(waited, ended - began),))

    def abandon(self) -> None:
        self._step = None

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass
