"""Graceful shutdown: open requests are drained, and those that remain end with an error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import uvicorn

from sarathi.fleet.fleet import Fleet
from sarathi.fleet.generation import ShuttingDownError
from sarathi.units import format_duration

_POLL = 0.05  # seconds
_SEND_ERRORS = 2.0  # seconds for the last errors to reach clients


class GracefulShutdown:
    """Drains a server: no new connections, a bounded time for open requests, then an error.

    Belongs to one event loop.
    """

    def __init__(
        self,
        server: uvicorn.Server,
        fleet: Fleet,
        drain_seconds: float,
        log: Callable[[str], None],
    ) -> None:
        """
        Args:
            drain_seconds: for requests that are open when the shutdown begins.
            log: called with a line about the progress.
        """
        self._server = server
        self._fleet = fleet
        self._drain_seconds = drain_seconds
        self._log = log
        self._cut_short = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._reason = "the drain timeout is over"

    def begin(self) -> None:
        """Start to drain; called again, end open requests at once."""
        if self._task is not None:
            self._reason = "interrupted again"
            self._cut_short.set()
            return
        self._start(self._drain_seconds)
        if self._num_open and self._drain_seconds:
            self._log(
                f"shutting down: {_requests(self._num_open)} may take up to "
                f"{format_duration(self._drain_seconds)} to end (interrupt again to end at once)"
            )
        else:
            self._log("shutting down")

    def end(self) -> None:
        """End open requests at once, because the engine could not be started."""
        self._reason = "there is no engine"
        if self._task is None:
            self._start(0.0)
        self._cut_short.set()

    def _start(self, drain_seconds: float) -> None:
        self._server.should_exit = True
        self._task = asyncio.create_task(self._run(drain_seconds))

    @property
    def _num_open(self) -> int:
        return len(self._server.server_state.tasks)

    async def _run(self, drain_seconds: float) -> None:
        await self._wait_until_none_open(drain_seconds)
        if self._num_open:
            self._log(f"{_requests(self._num_open)} ended with an error: {self._reason}")
        self._fleet.end_requests(ShuttingDownError())
        self._cut_short.clear()
        await self._wait_until_none_open(_SEND_ERRORS)
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()  # its client does not read, or never completes a request

    async def _wait_until_none_open(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._num_open and loop.time() < deadline and not self._cut_short.is_set():
            await asyncio.sleep(_POLL)


def _requests(count: int) -> str:
    return f"{count} open request" + ("s" if count != 1 else "")
