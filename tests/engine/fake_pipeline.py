"""A pipeline that computes a step when its result is asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from sarathi.backends.runner import NO_SLOTS, StepExecutor, StepResult, sample_and_score
from sarathi.backends.step import I64, Step
from sarathi.sampling.logprobs import ScoredRows
from sarathi.sampling.sampler import Sampler
from sarathi.telemetry.recorder import StageTime


class SizedExecutor(StepExecutor, Protocol):
    @property
    def config(self) -> Any:
        """Has the `vocab_size` of the logits."""


class Pipeline:
    """As many steps under way as there are stages.

    Attributes:
        hurries: whether there is a result when the engine waits, although it could go on.
        seen: how many steps were under way whenever the engine waited.
        before_result: called when a result is asked for; may raise.
    """

    def __init__(
        self, executor: SizedExecutor, depth: int, times: Iterable[tuple[StageTime, ...]] = ()
    ) -> None:
        """Prepare an empty pipeline.

        Args:
            times: of the steps, in order; afterwards nothing takes any time.
        """
        self.depth = depth
        self.looks_ahead = False
        self.hurries = True
        self.seen: list[int] = []
        self.steps: list[Step] = []
        self.abandoned = 0
        self.closed = False
        self.well = True
        self.before_result: Callable[[], None] = lambda: None
        self._executor = executor
        self._times: Iterator[tuple[StageTime, ...]] = iter(times)
        self._under_way: deque[tuple[Step, I64, ScoredRows | None]] = deque()
        self.sampler_slots = self._sampler = Sampler(executor.config.vocab_size)

    @property
    def is_free(self) -> bool:
        return len(self._under_way) < self.depth

    def submit(self, step: Step, slots: I64 = NO_SLOTS, scored: ScoredRows | None = None) -> None:
        assert self.is_free
        self.steps.append(step)
        self._under_way.append((step, slots, scored))

    def wait(self, seconds: float) -> bool:
        self.seen.append(len(self._under_way))
        return self.hurries or not self.is_free

    def result(self) -> StepResult:
        self.before_result()
        step, slots, scored = self._under_way.popleft()
        logits = self._executor.execute(step)
        sampled, scores = sample_and_score(self._sampler, logits, slots, scored)
        nothing = (StageTime(0.0, 0.0),) * self.depth
        return StepResult(sampled, next(self._times, nothing), scores=scores)

    def abandon(self) -> None:
        self.abandoned += 1
        self._under_way.clear()

    def check(self) -> None:
        assert self.well

    def close(self) -> None:
        self.closed = True
