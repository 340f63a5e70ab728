"""Threads for tokenisation and chat templates, which must not hold up the event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from sarathi.models.tokenizers.chat_template import RENDER_SECONDS
from sarathi.models.tokenizers.work_limit import WorkLimit
from sarathi.server.openai.api_errors import overloaded

# Tokenising takes about a hundred times the memory of a text, so that long ones come one by one.
# They have a thread of their own: a short text never waits for a long one.
_LONG = 64 * 2**10  # bytes of a request body
_TINY = 4096  # bytes, a millisecond of tokenising: less than a thread would cost the others
_SHORT_THREADS, _LONG_THREADS = 2, 1
_MAX_SHORT_WAITING, _MAX_LONG_WAITING = 2048, 32  # jobs, those that run included

Result = TypeVar("Result")


@dataclass
class _Lane:
    threads: int
    max_jobs: int
    num_jobs: int = 0
    executor: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self.executor = ThreadPoolExecutor(self.threads, thread_name_prefix="text")

    def submit(
        self, work: Callable[[WorkLimit], Result], limit: WorkLimit
    ) -> concurrent.futures.Future[Result]:
        if self.num_jobs >= self.max_jobs:
            raise overloaded("Too many texts are waiting to be tokenised.")
        self.num_jobs += 1
        future = self.executor.submit(work, limit)
        loop = asyncio.get_running_loop()
        # Work that was cancelled while it ran counts until its thread is free.
        future.add_done_callback(lambda _: self._end_on(loop))
        return future

    def _end_on(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the loop has been closed, since the server has stopped
            loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self.num_jobs -= 1


class TextPool:
    """Runs work on text with bounds on its time, its memory and how much of it may wait."""

    def __init__(self) -> None:
        self._short = _Lane(_SHORT_THREADS, _MAX_SHORT_WAITING)
        self._long = _Lane(_LONG_THREADS, _MAX_LONG_WAITING)

    async def run(
        self, num_bytes: int, work: Callable[[WorkLimit], Result], *, renders: bool = False
    ) -> Result:
        """Run `work` on a thread and return its result.

        Cancelling the awaiting task takes work that has not begun out of the queue, and ends work
        that has begun when it next checks its limit.

        Args:
            num_bytes: size of the request body, which tells short work from long work.
            work: gets a limit that it has to check often.
            renders: whether it renders a template, whose time its size does not bound. Other work
                on a few bytes is done at once.

        Raises:
            ApiError: status 503, when too much work of that size is waiting.
        """
        limit = WorkLimit(RENDER_SECONDS)
        if num_bytes <= _TINY and not renders:
            return work(limit)
        lane = self._short if num_bytes <= _LONG else self._long
        future = lane.submit(work, limit)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            limit.cancel()
            raise
