"""Runners keep steps in flight: one on a single executor, one per stage of a pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from sarathi.backends.step import I64, Step
from sarathi.models.weights import Array
from sarathi.sampling.logprobs import ScoredRows, TokenLogprobs
from sarathi.sampling.sampler import RequestSlots, SamplerOutput, StepSampler
from sarathi.telemetry.recorder import StageTime


class StepResult(NamedTuple):
    """The result of a step."""

    sampled: SamplerOutput  # a token for each of the step's sampled rows
    stages: tuple[StageTime, ...]
    sampling: float = 0.0  # seconds that sampling took after the last stage
    scores: Sequence[TokenLogprobs] = ()  # one for each of the step's scored rows
    pooled: Array | None = None  # of the step's pooled rows, as `Executor.pooled`


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

    def submit(self, step: Step, slots: I64 = NO_SLOTS, scored: ScoredRows | None = None) -> None:
        """Start a step, or keep it until `result`; at most `depth` may be in flight.

        Args:
            slots: of the requests of the sampled rows, all different, open until the result has
                been returned. Empty for a step without sampling.
            scored: of the rows after the sampled ones, if there are any.

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

    def pooled(self) -> Array: ...


def sample_and_score(
    sampler: StepSampler, logits: Any, slots: I64, scored: ScoredRows | None
) -> tuple[SamplerOutput, Sequence[TokenLogprobs]]:
    """Sample from the first rows of a step's logits, one for each slot, and score the others."""
    scores: Sequence[TokenLogprobs] = ()
    if scored is not None:
        scores = sampler.score(logits[len(slots) :], scored)
        logits = logits[: len(slots)]
    return sampler.sample(logits, slots) if len(slots) else NOTHING_SAMPLED, scores


class InlineRunner:
    """One executor that has the whole model: a step is computed when its result is requested."""

    depth = 1
    looks_ahead = False

    def __init__(
        self,
        executor: StepExecutor,
        sampler: StepSampler,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._executor = executor
        self._sampler = sampler
        self._clock = clock
        self._step: Step | None = None
        self._slots = NO_SLOTS
        self._scored: ScoredRows | None = None
        self._last_end: float | None = None

    @property
    def sampler_slots(self) -> RequestSlots:
        return self._sampler

    @property
    def is_free(self) -> bool:
        return self._step is None

    def submit(self, step: Step, slots: I64 = NO_SLOTS, scored: ScoredRows | None = None) -> None:
        self._step, self._slots, self._scored = step, slots, scored

    def wait(self, seconds: float) -> bool:
        return True

    def result(self) -> StepResult:
        assert self._step is not None
        step, self._step = self._step, None
        start = self._clock()
        logits = self._executor.execute(step)
        pooled = self._executor.pooled() if len(step.pooled_rows) else None
        end = self._clock()
        waited = 0.0 if self._last_end is None else start - self._last_end
        self._last_end = end
        sampled, scores = sample_and_score(self._sampler, logits, self._slots, self._scored)
        stages = (StageTime(waited, end - start),)
        return StepResult(sampled, stages, self._clock() - end, scores, pooled)

    def abandon(self) -> None:
        self._step = None

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass
