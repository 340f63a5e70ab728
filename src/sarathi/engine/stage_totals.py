"""What the stages of a pipeline did with their time since the engine started."""

from __future__ import annotations

from collections.abc import Sequence

from sarathi.executors.runner import StageTime


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
