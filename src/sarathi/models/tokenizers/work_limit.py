"""A bound on work that runs on a thread and cannot be killed."""

from __future__ import annotations

import time

_YIELD_EVERY = 0.001  # seconds of work between two pauses
_PAUSE = 0.0001  # seconds; long enough for another thread to get the interpreter lock


class WorkLimitError(ValueError):
    """The work took too long, or its result became too large."""


class WorkCancelledError(Exception):
    """The work was cancelled: its result is no longer needed."""


class WorkLimit:
    """A limit in seconds from the first `check` on, which another thread can end earlier.

    The work has to call `check` often, which also pauses now and then, so that pure Python work
    does not hold the interpreter lock against the event loop for its switch interval of 5 ms.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline: float | None = None
        self._next_pause = 0.0
        self._cancelled = False

    def cancel(self) -> None:
        """Make the next `check` raise `WorkCancelledError`; any thread may call this."""
        self._cancelled = True

    def check_cancelled(self) -> None:
        """Raise `WorkCancelledError` if `cancel` was called."""
        if self._cancelled:
            raise WorkCancelledError

    def check(self) -> None:
        """Raise `WorkLimitError` if the time is over, `WorkCancelledError` after `cancel`."""
        self.check_cancelled()
        now = time.perf_counter()
        if self._deadline is None:
            self._deadline = now + self._seconds
            self._next_pause = now + _YIELD_EVERY
        elif now > self._deadline:
            raise WorkLimitError(f"it takes more than {self._seconds:g} seconds")
        elif now > self._next_pause:
            time.sleep(_PAUSE)
            self._next_pause = time.perf_counter() + _YIELD_EVERY
