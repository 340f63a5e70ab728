"""Threads for tokenisation and chat templates, which must not block the event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from sarathi.models.tokenizers.chat_template import RENDER_SECONDS
from sarathi.models.tokenizers.work_limit import WorkLimit
from sarathi.server.responses import unavailable

# Tokenising takes about a hundred times the memory of a text, so that long ones go one by one.
# They have a thread to themselves: a short text never waits for a long one.
_LONG = 64 * 2**10  # bytes of a request body
_TINY = 4096  # bytes, a millisecond of tokenising: less than a switch of threads would cost
_SHORT_THREADS, _LONG_THREADS = 2, 1
_MAX_SHORT_JOBS, _MAX_LONG_JOBS = 2048, 32  # waiting and running

Result = TypeVar("Result")


class TokenizerPool:
    """Runs work on text, with limits on its time, its memory and how much of it may wait."""

    def __init__(self) -> None:
        self._short = _BoundedExecutor(_SHORT_THREADS, _MAX_SHORT_JOBS)
        self._long = _BoundedExecutor(_LONG_THREADS, _MAX_LONG_JOBS)

    async def run(
        self, num_bytes: int, work: Callable[[WorkLimit], Result], *, renders: bool = False
    ) -> Result:
        """Run `work` on a thread and return its result.

        Cancelling the awaiting task removes work that has not started, and ends started work when
        it next checks its limit.

        Args:
            num_bytes: size of the request body, which separates short from long work.
            work: gets a limit that it has to check often.
            renders: whether it renders a template, whose time its size does not bound. Other work
                on a few bytes is done at once.

        Raises:
            ApiError: status 503, when too much work of that size is waiting.
        """
        limit = WorkLimit(RENDER_SECONDS)
        if num_bytes <= _TINY and not renders:
            return work(limit)
        executor = self._short if num_bytes <= _LONG else self._long
        future = executor.submit(work, limit)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            limit.cancel()
            raise


class _BoundedExecutor:
    def __init__(self, threads: int, max_jobs: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="tokenizer")
        self._max_jobs = max_jobs
        self._num_jobs = 0

    def submit(
        self, work: Callable[[WorkLimit], Result], limit: WorkLimit
    ) -> concurrent.futures.Future[Result]:
        if self._num_jobs >= self._max_jobs:
            message = "Too many texts are waiting to be tokenised."
            raise unavailable(message, "overloaded", retry_after=1)
        self._num_jobs += 1
        future = self._executor.submit(work, limit)
        loop = asyncio.get_running_loop()

        def release() -> None:
            self._num_jobs -= 1

        def done(future: concurrent.futures.Future[Result]) -> None:
            with suppress(RuntimeError):  # the loop has been closed, since the server has stopped
                loop.call_soon_threadsafe(release)

        # Work that was cancelled while it ran counts until its thread is free.
        future.add_done_callback(done)
        return future
