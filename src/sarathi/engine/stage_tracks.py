"""When each stage of a pipeline computed, as far as the engine can know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sarathi.executors.runner import StageTime


class Span(NamedTuple):
    """Seconds, on the clock of the engine."""

    begin: float
    end: float


class StageTracks:
    """Puts what stages waited and computed one after the other.

    A stage measures how long it waited and computed, on its own clock, and nobody says when. A
    step that found the pipeline empty must have begun when it was submitted, and in each stage when
    the one before had computed it: the time of messages is left out. From there on the times of
    each stage add up.
    """

    def __init__(self) -> None:
        self._ended: list[float] = []  # of the step before, by stage

    def place(self, stages: Sequence[StageTime], submitted: float, fresh: bool) -> list[Span]:
        """The spans of a step, by stage; steps come in order.

        Args:
            submitted: seconds; when the step was.
            fresh: whether the pipeline had been empty for want of work.
        """
        if fresh or len(stages) != len(self._ended):
            ends = []
            at = submitted
            for _, busy in stages:
                at += busy
                ends.append(at)
        else:
            ends = [
                ended + waited + busy
                for ended, (waited, busy) in zip(self._ended, stages, strict=True)
            ]
        self._ended = ends
        return [Span(end - stage.busy, end) for end, stage in zip(ends, stages, strict=True)]
