"""What the clock of another machine shows."""

from __future__ import annotations

from collections import deque

_REMEMBERED = 32  # so few that the clocks have not drifted apart meanwhile


class ClockOffset:
    """How far another machine's clock is ahead of ours, from messages that tell its time.

    A message takes time and is never early: what it tells is too little by that time, so the most
    that any of the latest ones told is nearest to the truth.
    """

    def __init__(self) -> None:
        self._told: deque[float] = deque(maxlen=_REMEMBERED)

    def tell(self, theirs: float, ours: float) -> None:
        """
        Args:
            theirs: seconds; what their clock showed when they sent a message.
            ours: seconds; what ours showed when it came.
        """
        self._told.append(theirs - ours)

    @property
    def seconds(self) -> float:
        """To add to a time of ours; 0 where nothing was told, for a clock that is the same."""
        return max(self._told, default=0.0)
