"""Graceful shutdown: open requests are drained, then ended with an error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import uvicorn

from sarathi.fleet.fleet import Fleet
from sarathi.fleet.generation import ShuttingDownError
from sarathi.units import format_duration

_POLL = 0.05  # seconds
_SENDING = 2.0  # seconds for the last error to reach clients


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
            log: called with a line about what happens.
        """
        self._server = server
        self._fleet = fleet
        self._drain_seconds = drain_seconds
        self._log = log
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._why = "the drain timeout is over"

    def begin(self) -> None:
        """Begin to drain; called again, end what is still open at once."""
        if self._task is not None:
            self._why = "interrupted again"
            self._hurry.set()
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
        """End all that is open at once, because the engine could not be started."""
        self._why = "there is no engine"
        if self._task is None:
            self._start(0.0)
        self._hurry.set()

    def _start(self, drain_seconds: float) -> None:
        self._server.should_exit = True
        self._task = asyncio.create_task(self._run(drain_seconds))

    @property
    def _num_open(self) -> int:
        return len(self._server.server_state.tasks)

    async def _run(self, drain_seconds: float) -> None:
        await self._until_none_is_open(drain_seconds)
        if self._num_open:
            self._log(f"{_requests(self._num_open)} ended with an error: {self._why}")
        self._fleet.end_requests(ShuttingDownError())
        self._hurry.clear()
        await self._until_none_is_open(_SENDING)
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()  # its client does not read, or never completes a request

    async def _until_none_is_open(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._num_open and loop.time() < deadline and not self._hurry.is_set():
            await asyncio.sleep(_POLL)


def _requests(count: int) -> str:
    return f"{count} open request" + ("s" if count != 1 else "")
