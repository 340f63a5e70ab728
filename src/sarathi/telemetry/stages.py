"""Times of pipeline stages: what they computed and what they waited for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class StageTime(NamedTuple):
    """What one stage did for one step, in seconds."""

    waited: float  # since it had finished the step before
    busy: float


class StageTotals:
    """Busy and idle seconds of each stage, as steps complete.

    The bubble of a stage is the time in which it had nothing to compute while the engine had work.
    What a stage waited for the first step after the engine had none is no bubble. That leaves out
    the time in which this step passes the stages before.
    """

    def __init__(self) -> None:
        self.busy: list[float] = []
        self.bubble: list[float] = []

    def add(self, stages: Sequence[StageTime], fresh: bool) -> None:
        """
        Args:
            fresh: whether there was no work before the step.
        """
        if not self.busy:
            self.busy = [0.0] * len(stages)
            self.bubble = [0.0] * len(stages)
        for index, (waited, busy) in enumerate(stages):
            self.busy[index] += busy
            if not fresh:
                self.bubble[index] += waited


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
