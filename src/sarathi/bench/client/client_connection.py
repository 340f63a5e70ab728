"""One request on a separate connection.

It shares the cores with the measured server, so it does as little as possible: no
reading task, no timer for each event, one look at the clock for each piece of data.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from sarathi.bench.client.answer import Answer
from sarathi.bench.client.endpoint import Endpoint

_LONGEST_LOOKUP = 5.0  # seconds
# Errors of the client, not of the server: this machine has run out of files or ports.
_CLIENT_ERRORS = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL)


Connect = Callable[[Callable[[], asyncio.Protocol]], Coroutine[Any, Any, object]]


async def connector(endpoint: Endpoint) -> Connect:
    """Find the address that accepts connections, and return what connects a protocol to it.

    A name such as localhost has several, and the server may listen on one alone. Trying each for
    every request would be measured as if it were the server's time. Where none accepts, each
    connection will try the name.
    """
    context = endpoint.ssl_context()
    host = endpoint.host
    try:
        _, writer = await asyncio.wait_for(
            asyncio.open_connection(endpoint.host, endpoint.port), _LONGEST_LOOKUP
        )
    except (OSError, asyncio.TimeoutError):
        pass
    else:
        host = writer.get_extra_info("peername")[0]
        writer.transport.abort()
    return partial(
        asyncio.get_running_loop().create_connection,
        host=host,
        port=endpoint.port,
        ssl=context,
        server_hostname=endpoint.host if context is not None else None,
    )


@dataclass(eq=False)
class ClientConnection(asyncio.Protocol):
    """Sends a request and reads its answer until that is complete or has failed."""

    request: bytes
    answer: Answer
    now: Callable[[], float]  # the clock, in seconds since the run began
    timeout: float  # seconds without a token, since the last one or since the start
    progressed: Callable[[list[float]], None]  # called with the times of new tokens
    ended: Callable[[float], None]  # called once, with the time, when the answer is over
    _closed: bool = False
    _began: float = 0.0
    _transport: asyncio.Transport | None = None
    _timer: asyncio.TimerHandle | None = None
    _opening: asyncio.Task[None] | None = None

    def open(self, connect: Connect) -> None:
        """Start connecting; errors end up in the answer."""
        self._began = self.now()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.timeout, self._expire)
        self._opening = loop.create_task(self._open(connect))

    def abort(self) -> None:
        """Close the connection without calling `ended`."""
        self._closed = True
        self._release()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked with isinstance: the transports of uvloop do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        if self._closed:
            self._transport.abort()
        else:
            self._transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self._closed:
            return
        now = self.now()
        new = self.answer.feed(data, now)
        if new:
            self.progressed([now] * new)
        if self.answer.over:
            self._end(now)

    def connection_lost(self, exc: Exception | None) -> None:
        self.answer.end_of_data(str(exc) if exc is not None else "")
        self._end(self.now())

    async def _open(self, connect: Connect) -> None:
        try:
            await connect(lambda: self)
        except OSError as error:
            kind = "client" if error.errno in _CLIENT_ERRORS else "connect"
            self._fail(kind, f"{type(error).__name__}: {error}")

    def _expire(self) -> None:
        """Check the timeout; only here is the timer restarted, not with each token."""
        last = self.answer.last_progress
        left = (self._began if last is None else last) + self.timeout - self.now()
        if left > 0:
            # Those of uvloop count milliseconds.
            self._timer = asyncio.get_running_loop().call_later(left + 0.001, self._expire)
            return
        what = "no token" if self._transport is not None else "no connection"
        self._fail("timeout", f"{what} for {self.timeout:g} s")

    def _fail(self, kind: str, detail: str) -> None:
        self.answer.fail(kind, detail)
        self._end(self.now())

    def _end(self, now: float) -> None:
        if not self._closed:
            self._closed = True
            self._release()
            self.ended(now)

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._opening is not None:
            self._opening.cancel()
        if self._transport is not None:
            self._transport.abort()  # whatever follows the end of an answer is ignored
