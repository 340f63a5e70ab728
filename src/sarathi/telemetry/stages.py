"""Busy and waiting times of pipeline stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class StageTime(NamedTuple):
    """Times of one stage for one step, in seconds."""

    waited: float  # since the end of the step before
    busy: float


class StageTotals:
    """Busy and idle seconds of each stage, as steps complete.

    The bubble of a stage is the time in which it had nothing to compute while the engine had work.
    The wait for the first step after the engine was idle does not count, which leaves out the time
    that this step takes in the stages before.
    """

    def __init__(self) -> None:
        self.busy: list[float] = []
        self.bubble: list[float] = []

    def add(self, stages: Sequence[StageTime], fresh: bool) -> None:
        """Add the times of a step.

        Args:
            fresh: whether the engine was idle before the step.
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
    """Reconstructs when each stage computed each step.

    A stage measures how long it waited and computed, but not when. A step that found the pipeline
    empty began when it was submitted, and in each stage when the previous stage had computed it:
    the time of messages is left out. From there on the times of each stage add up.
    """

    def __init__(self) -> None:
        self._ended: list[float] = []  # of the step before, by stage

    def spans(self, stages: Sequence[StageTime], submitted: float, fresh: bool) -> list[Span]:
        """Return the span of a step in each stage; steps come in order.

        Args:
            submitted: seconds; when the step was submitted.
            fresh: whether the engine was idle before the step.
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
