"""Time limits of the parts of a check."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class DeadlineError(Exception):
    """A part has used up its time."""


class Deadline:
    """A point in time, by a clock that never jumps."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            seconds: from now.
        """
        self._clock = clock
        self._end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds until then; negative afterwards."""
        return self._end - self._clock()

    def require(self, seconds: float, purpose: str) -> None:
        """Check that there is time for a measurement.

        Raises:
            DeadlineError: fewer than `seconds` are left.
        """
        if self.left < seconds:
            raise DeadlineError(f"no time left for {purpose}: {max(0.0, self.left):.1f} s")

    def part(self, seconds: float) -> Deadline:
        """Return a deadline `seconds` from now, or this one where it is earlier."""
        return Deadline(min(seconds, self.left), self._clock)


@contextmanager
def interrupting(seconds: float) -> Iterator[None]:
    """Raise `DeadlineError` in the main thread if the block takes longer than that.

    Python delivers the signal between two bytecodes: a call into a library that never returns is
    not interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise DeadlineError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
