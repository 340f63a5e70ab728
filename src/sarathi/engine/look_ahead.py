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
        # Of batches with and without prompts: only the latter run as CUDA graphs.
        self._means: dict[bool, float] = {}
        self._host = 0.0  # the mean for batches like the latest one
        self._at = 0.0

    def seconds_left(self, now: float) -> float:
        """Return how long to wait until the next batch is made; 0 or less: make it now."""
        return self._at - now

    def made(self, began: float, submitted: float, *, prompts: bool) -> None:
        """Learn the host's time for a batch: from before it was scheduled until it was launched.

        Args:
            prompts: whether there are any in it.
        """
        took = submitted - began
        mean = self._means.get(prompts, took)
        self._host = self._means[prompts] = mean + _SMOOTHING * (took - mean)

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
