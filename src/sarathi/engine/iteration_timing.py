"""What the loop learns from iteration times: for the latency model, and for scheduling ahead."""

from __future__ import annotations

from collections.abc import Sequence

from sarathi.scheduler import Batch, LatencyModel
from sarathi.telemetry.recorder import StageTime

_LOOP_SHARE = 0.1  # of an iteration: the most that the loop around it can take
_SMOOTHING = 0.1  # weight of the latest iteration in the mean of the host's time
_HOST_MARGIN = 2.0  # times the host's mean time by which a batch is scheduled too early
_MODEL_MARGIN = 0.15  # of the predicted time, likewise


def time_per_stage(stages: Sequence[StageTime], overhead: float) -> float:
    """Return the seconds between two batches that leave a full pipeline.

    The slowest stage keeps the others waiting. The overhead of a batch, in seconds outside of its
    stages, is spread over the batches in flight, of which there are as many as stages.
    """
    return max(stage.busy for stage in stages) + overhead / len(stages)


class LatencyObserver:
    """Feeds a latency model with what batches add to the time between two tokens.

    With one stage, that is the time since the end of the previous iteration; with several, see
    `time_per_stage`.
    """

    def __init__(self, model: LatencyModel | None) -> None:
        self._model = model
        self._ended: float | None = None  # the previous iteration, None after a pause

    def on_idle(self) -> None:
        """Do not count the pause until the next iteration."""
        self._ended = None

    def observe(
        self,
        batch: Batch,
        began: float,
        ended: float,
        overhead: float,
        stages: Sequence[StageTime],
        *,
        waited: float = 0.0,
    ) -> None:
        """Add one batch, which has at least one stage. Times are seconds.

        Args:
            began: before the batch was scheduled.
            ended: after its tokens were published.
            overhead: of the time between the two, what the engine itself took.
            waited: of that time, what sampling waited for masks, which the model learns apart.
        """
        if len(stages) == 1:
            seconds = ended - began - waited
            if self._ended is not None:
                # Offline callers may take their time between two, which is not the machine's.
                seconds += min(began - self._ended, _LOOP_SHARE * seconds)
            self._ended = ended
        else:
            seconds = time_per_stage(stages, overhead - waited)
        if self._model is not None:
            self._model.mask_wait.observe(batch.constrained, waited)
            self._model.observe(batch.work, seconds)


class LaunchTimer:
    """Times the scheduling of a batch that follows another without a pause.

    A batch that is scheduled early keeps out the requests that arrive while the previous one is
    computed: they wait for one iteration more. So it is scheduled as late as the host's own time,
    which is measured, and the predicted end of the batch in flight allow, with a margin for both.
    All times are seconds of any one clock.
    """

    def __init__(self) -> None:
        # Of batches with and without prompts: only the latter run as CUDA graphs.
        self._means: dict[bool, float] = {}
        self._host = 0.0  # the mean for batches like the latest one
        self._at = 0.0

    def seconds_left(self, now: float) -> float:
        """Return how long to wait until the next batch is scheduled; 0 or less: do it now."""
        return self._at - now

    def batch_submitted(self, began: float, submitted: float, *, prompts: bool) -> None:
        """Add the host's time for a batch: from before it was scheduled until it was launched."""
        seconds = submitted - began
        mean = self._means.get(prompts, seconds)
        self._host = self._means[prompts] = mean + _SMOOTHING * (seconds - mean)

    def batch_started(self, now: float, predicted: float | None) -> None:
        """Note that the device has started to compute a batch, for so many seconds as predicted.

        Without a prediction (None), the next batch is scheduled at once.
        """
        if predicted is None:
            self._at = now
        else:
            self._at = now + predicted * (1 - _MODEL_MARGIN) - _HOST_MARGIN * self._host
