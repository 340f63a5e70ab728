"""One submitted request, as whoever submitted it sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sarathi.engine.latencies import Stopwatch
from sarathi.engine.messages import TokenOutput


class EngineError(RuntimeError):
    """The engine cannot answer: it is still loading, has died, or refused the request."""


class Generation:
    """The tokens of one request, as they come."""

    def __init__(self, stopwatch: Stopwatch, forget: Callable[[], bool]) -> None:
        """
        Args:
            forget: ends the request in the engine; False where it has ended already.
        """
        self._stopwatch = stopwatch
        self._forget = forget
        self._outputs: list[TokenOutput] = []
        self._error: str | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def next(self) -> list[TokenOutput]:
        """The tokens since the last call, at least one; the last has a finish reason.

        Raises:
            EngineError: the engine refused the request or died.
        """
        if not self._outputs and self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if not self._outputs:
            raise EngineError(self._error)
        outputs, self._outputs = self._outputs, []
        return outputs

    def cancel(self) -> None:
        """Stop computing and free the KV blocks. Harmless after the end, or twice."""
        if self._forget():
            self._stopwatch.end("cancelled")

    def stop(self) -> None:
        """The same, for an answer that is complete because a stop string came."""
        if self._forget():
            self._stopwatch.end("stop")

    def put(self, output: TokenOutput, now: float) -> None:
        """
        Args:
            now: when it came, time.monotonic.
        """
        self._stopwatch.token(output, now)
        if output.finish_reason is not None:
            self._stopwatch.end(output.finish_reason)
        self._outputs.append(output)
        self._wake()

    def fail(self, message: str) -> None:
        self._stopwatch.end("failed")
        self._error = message
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
