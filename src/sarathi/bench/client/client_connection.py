"""One request on a separate connection.

It shares the cores with the measured server, so it does as little as possible: no
reading task, no timer for each event, one look at the clock for each piece of data.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import cast

from sarathi.bench.client.answer import Answer
from sarathi.bench.client.endpoint import Endpoint

_LONGEST_LOOKUP = 5.0  # seconds
# Errors of the client, not of the server: this machine has run out of files or ports.
_CLIENT_ERRORS = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL)


@dataclass(frozen=True)
class Address:
    """Where connections go, found once for all of them."""

    host: str
    port: int
    ssl: ssl.SSLContext | None
    server_hostname: str | None


async def locate(endpoint: Endpoint) -> Address:
    """Return the address that accepts connections; the host itself where none does.

    A name such as localhost has several, and the server may listen on one alone. Trying each for
    every request would be measured as if it were the server's time.
    """
    context = endpoint.ssl_context()
    name = endpoint.host if context is not None else None
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
    return Address(host, endpoint.port, context, name)


@dataclass(frozen=True)
class Clock:
    """Seconds since a run began."""

    origin: float  # by perf_counter

    def now(self) -> float:
        return perf_counter() - self.origin


class ClientConnection(asyncio.Protocol):
    """Sends a request and reads its answer until that is complete or has failed."""

    def __init__(
        self,
        request: bytes,
        answer: Answer,
        *,
        clock: Clock,
        timeout: float,
        progressed: Callable[[list[float]], None],
        ended: Callable[[float], None],
    ) -> None:
        """
        Args:
            timeout: seconds without a token, since the last one or since the start.
            progressed: called with the times of new tokens.
            ended: called once, with the time, when the answer is over.
        """
        self._request = request
        self._answer = answer
        self._now = clock.now
        self._timeout = timeout
        self._progressed = progressed
        self._ended = ended
        self._closed = False
        self._began = 0.0
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._opening: asyncio.Task[None] | None = None

    def open(self, address: Address) -> None:
        """Start connecting; errors end up in the answer."""
        self._began = self._now()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._timeout, self._expire)
        self._opening = loop.create_task(self._open(address))

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
            self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._closed:
            return
        now = self._now()
        new = self._answer.feed(data, now)
        if new:
            self._progressed([now] * new)
        if self._answer.over:
            self._end(now)

    def connection_lost(self, exc: Exception | None) -> None:
        self._answer.end_of_data(str(exc) if exc is not None else "")
        self._end(self._now())

    async def _open(self, address: Address) -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: self,
                address.host,
                address.port,
                ssl=address.ssl,
                server_hostname=address.server_hostname,
            )
        except OSError as error:
            kind = "client" if error.errno in _CLIENT_ERRORS else "connect"
            self._fail(kind, f"{type(error).__name__}: {error}")

    def _expire(self) -> None:
        """Check the timeout; only here is the timer restarted, not with each token."""
        last = self._answer.last_progress
        left = (self._began if last is None else last) + self._timeout - self._now()
        if left > 0:
            # Those of uvloop count milliseconds.
            self._timer = asyncio.get_running_loop().call_later(left + 0.001, self._expire)
            return
        what = "no token" if self._transport is not None else "no connection"
        self._fail("timeout", f"{what} for {self._timeout:g} s")

    def _fail(self, kind: str, detail: str) -> None:
        self._answer.fail(kind, detail)
        self._end(self._now())

    def _end(self, now: float) -> None:
        if not self._closed:
            self._closed = True
            self._release()
            self._ended(now)

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._opening is not None:
            self._opening.cancel()
        if self._transport is not None:
            self._transport.abort()  # whatever follows the end of an answer is ignored
