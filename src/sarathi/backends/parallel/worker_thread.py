"""One thread that does one thing after the other, and may be left behind."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """Unlike a `ThreadPoolExecutor`, it keeps no process alive: what it does may never end, such
    as waiting for a rank that has died."""

    def __init__(
        self,
        name: str,
        *,
        after: Callable[[], object] = lambda: None,
        at_end: Callable[[], object] = lambda: None,
    ) -> None:
        """
        Args:
            after: called in the thread when something has been done and its result can be had.
            at_end: called in the thread when it ends, whenever that is.
        """
        self._after = after
        self._at_end = at_end
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._tasks = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, task: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._tasks.put((future, task))
        return future

    def close(self, timeout: float) -> None:
        """End after what has been submitted; waits so many seconds for that. Harmless twice."""
        self._tasks.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (item := self._tasks.get()) is not None:
            future, task = item
            try:
                result = task()
            except BaseException as error:  # whoever asks for the result gets it
                future.set_exception(error)
            else:
                future.set_result(result)
            self._after()
            # What the task holds must not live on while there is nothing to do.
            del item, future, task
        self._at_end()
