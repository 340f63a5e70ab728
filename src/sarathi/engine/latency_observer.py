"""How long iterations take, for the latency model to learn."""

from __future__ import annotations

from collections.abc import Sequence

from sarathi.scheduler import LatencyModel, Work
from sarathi.telemetry.stages import StageTime

_LOOP_SHARE = 0.1  # of an iteration: the most that the loop around it can take


def stage_share(stages: Sequence[StageTime], beside: float) -> float:
    """What a batch adds to the time between two tokens for each stage that it passes, in seconds.

    The slowest stage keeps the others waiting; what is in none of them is shared out among them.

    Args:
        beside: seconds that the batch took beside its stages.
    """
    return max(stage.busy for stage in stages) + beside / len(stages)


class LatencyObserver:
    """Tells a latency model what batches add to the time between two tokens.

    With one stage, that is an iteration, from the end of the one before, as a reader waits. With
    several it is the part of a stage; see `stage_share`.
    """

    def __init__(self, model: LatencyModel | None) -> None:
        self._model = model
        self._ended: float | None = None  # the iteration before, None where there was a pause

    def rest(self) -> None:
        """There is nothing to do for a while."""
        self._ended = None

    def learn(
        self, work: Work, began: float, ended: float, own: float, stages: Sequence[StageTime]
    ) -> None:
        """
        Args:
            began: seconds; when the batch was about to be scheduled.
            ended: when its tokens had been published.
            own: seconds between the two in which the engine did its own part.
            stages: of the batch, one at least.
        """
        if len(stages) == 1:
            took = ended - began
            if self._ended is not None:
                # Offline callers may take their time between two, which is not the machine's.
                took += min(began - self._ended, _LOOP_SHARE * took)
            self._ended = ended
        else:
            took = stage_share(stages, own)
        if self._model is not None:
            self._model.observe(work, took)
