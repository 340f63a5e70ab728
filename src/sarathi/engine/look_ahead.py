"""When to make the next batch while one is being computed."""

from __future__ import annotations

_SMOOTHING = 0.1  # weight of the latest iteration in the mean of the host's time
_HOST_MARGIN = 2.0  # times the host's mean time for which a batch is made too early
_MODEL_MARGIN = 0.15  # of the predicted time, likewise


class LookAhead:
    """Times the scheduling of a batch that follows another without a pause.

    A batch that is made early keeps out the requests that come while the one before it is still
    computed: they wait for one iteration more. So it is made as late as the host's own time allows,
    which is measured, and the predicted end of the batch under way, with a margin for both.
    All times are seconds of any one clock.
    """

    def __init__(self) -> None:
        self._host = 0.0
        self._at = 0.0

    def seconds_left(self, now: float) -> float:
        """How long to wait before the next batch is made; 0 or less: make it now."""
        return self._at - now

    def made(self, began: float, submitted: float) -> None:
        """Learn the host's time for a batch: from before it was scheduled until it was launched."""
        self._host += _SMOOTHING * (submitted - began - self._host)

    def started(self, now: float, predicted: float | None) -> None:
        """Note that the device has begun to compute a batch.

        Args:
            predicted: seconds that it will take; None where there is no latency model, and the
                next batch is made at once.
        """
        if predicted is None:
            self._at = now
        else:
            self._at = now + predicted * (1 - _MODEL_MARGIN) - _HOST_MARGIN * self._host
