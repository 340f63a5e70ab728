"""Sends requests at their planned times, however slowly earlier ones are answered (open loop).

Each request has a connection of its own, which shares the cores with the measured server and so
does as little as possible: no reading task, no timer for each event, one look at the clock for each
piece of data.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import resource
import time
from array import array
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import numpy as np

from sarathi.bench.client.answer import Answer
from sarathi.bench.client.endpoint import Call, Dialect, Endpoint, request
from sarathi.bench.results import Lag
from sarathi.telemetry import RequestRecord

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
    context, host = endpoint.ssl_context(), endpoint.host
    with suppress(OSError, asyncio.TimeoutError):
        opening = asyncio.open_connection(endpoint.host, endpoint.port)
        _, writer = await asyncio.wait_for(opening, _LONGEST_LOOKUP)
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
        self._transport = cast("asyncio.Transport", transport)
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


HEARTBEAT = 0.01  # seconds between two heartbeats


class RunListener(Protocol):
    """Is notified of everything at once, between two events of the network: it must be quick.

    Times are seconds since the run began. `index` is that of the call.
    """

    def sent(self, index: int, now: float) -> None: ...

    def progressed(self, index: int, times: Sequence[float]) -> None:
        """Handle new tokens.

        Where the server does not count the tokens of each event, an event with text counts as one
        token here; the record is corrected by the usage at the end.
        """

    def ended(self, index: int, record: RequestRecord) -> None: ...

    def stop_reason(self, now: float) -> str | None:
        """Return why the run should stop at once, or None; called a few times a second."""


@dataclass(frozen=True)
class Played:
    """The outcome of all calls."""

    records: list[RequestRecord]  # of requests that ended, in the order of the calls
    indices: list[int]  # of their calls
    lag: Lag
    stopped: str | None  # why a listener ended the run
    began: float  # Unix time


async def play(
    endpoint: Endpoint,
    dialect: Dialect,
    calls: Sequence[Call],
    *,
    timeout: float,
    listeners: Sequence[RunListener] = (),
) -> Played:
    """Send all calls and wait for their answers.

    Whatever a server does becomes a record. It ends at the latest `timeout` after the last request
    is sent and the last token of any of them has come.

    Args:
        timeout: seconds without a token, since the last one or since sending, after which a
            request has failed.
        listeners: are notified of everything; the first that wants to stop gives the reason.
    """
    requests = [request(endpoint, dialect, call) for call in calls]
    connect = await connector(endpoint)
    _allow_open_files(len(calls))
    with _collector_paused():
        return await _Run(calls, requests, connect, dialect.ignore_eos, timeout, listeners).play()


@dataclass
class _Run:
    """Time begins when it is made."""

    calls: Sequence[Call]
    requests: Sequence[bytes]
    connect: Connect
    exact: bool  # an answer with fewer tokens than asked for has failed
    timeout: float
    listeners: Sequence[RunListener]

    def __post_init__(self) -> None:
        self._open: dict[int, ClientConnection] = {}
        self._records: dict[int, RequestRecord] = {}
        self._began = time.time()
        self._origin = time.perf_counter()
        self._lag = LagMeter()

    async def play(self) -> Played:
        sender = asyncio.get_running_loop().create_task(self._send_all())
        try:
            stopped = await self._wait(sender)
        finally:
            sender.cancel()
            for connection in self._open.values():
                connection.abort()
        indices = sorted(self._records)
        records = [self._records[index] for index in indices]
        return Played(records, indices, self._lag.result(self._now()), stopped, self._began)

    def _now(self) -> float:
        return time.perf_counter() - self._origin

    async def _wait(self, sender: asyncio.Task[None]) -> str | None:
        """Keep the heartbeat until all have ended, or a listener stops the run."""
        checked = 0.0
        while len(self._records) < len(self.calls):
            await asyncio.sleep(max(0.0, self._lag.next_beat - self._now()))
            now = self._now()
            self._lag.beat(now)
            if now - checked >= 0.25:
                checked = now
                reasons = [listener.stop_reason(now) for listener in self.listeners]
                for reason in reasons:
                    if reason is not None:
                        return reason
            if sender.done():
                sender.result()  # raises what a listener has raised
        return None

    async def _send_all(self) -> None:
        for index in sorted(range(len(self.calls)), key=lambda index: self.calls[index].at):
            # Timers of uvloop count milliseconds and may be early by half of one.
            while (wait := self.calls[index].at - self._now()) > 0:
                await asyncio.sleep(wait)
            self._send(index)
            await asyncio.sleep(0)  # a burst must not keep the connections from being made

    def _send(self, index: int) -> None:
        call = self.calls[index]
        answer = Answer(call.output_tokens, self.exact)
        arrival = self._now()
        connection = ClientConnection(
            self.requests[index],
            answer,
            now=self._now,
            timeout=self.timeout,
            progressed=partial(self._progressed, index),
            ended=partial(self._end, index, answer, arrival),
        )
        self._open[index] = connection
        self._lag.sent(arrival - call.at)
        for listener in self.listeners:
            listener.sent(index, arrival)
        connection.open(self.connect)

    def _progressed(self, index: int, times: list[float]) -> None:
        for listener in self.listeners:
            listener.progressed(index, times)

    def _end(self, index: int, answer: Answer, arrival: float, now: float) -> None:
        call = self.calls[index]
        usage = answer.times.usage
        counted = usage.prompt_tokens if usage is not None else None
        record = RequestRecord(
            arrival=arrival,
            prompt_tokens=call.prompt_tokens if counted is None else counted,
            output_tokens=call.output_tokens,
            tokens=answer.tokens,
            end=now,
            scheduling_delay=answer.scheduling_delay,
            cached_tokens=usage.cached_tokens if usage is not None else 0,
            failure=answer.failure,
            detail=answer.detail,
            estimated=answer.estimated,
            lag=arrival - call.at,
        )
        self._records[index] = record
        del self._open[index]
        for listener in self.listeners:
            listener.ended(index, record)


class LagMeter:
    """Measures how late the client itself was: its heartbeats, and the sending of requests.

    The two are kept apart: at low rates there are far more heartbeats than requests, among which
    late requests would not be seen.
    """

    def __init__(self) -> None:
        self.next_beat = HEARTBEAT  # seconds since the run began
        self._beats = array("d")
        self._sends = array("d")
        self._cpu = time.process_time()

    def beat(self, now: float) -> None:
        """Record a heartbeat; a late one stands for all that it delayed, when events waited too."""
        while self.next_beat <= now:
            self._beats.append(now - self.next_beat)
            self.next_beat += HEARTBEAT

    def sent(self, late: float) -> None:
        """Record by how many seconds a request was sent late."""
        self._sends.append(late)

    def result(self, seconds: float) -> Lag:
        """Return the lag of a run that lasted so many seconds."""
        late = [
            np.percentile(values or [0.0], (50, 99, 100), method="inverted_cdf")
            for values in (self._beats, self._sends)
        ]
        p50, p99, most = np.max(late, axis=0).tolist()
        cpu = time.process_time() - self._cpu
        return Lag(p50=p50, p99=p99, max=most, cpu=cpu / seconds if seconds > 0 else 0.0)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the garbage collector, which would be measured as a gap between tokens."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def _allow_open_files(connections: int) -> None:
    """Raise the limit on open files: all requests may be open at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 256  # for what the process has open already
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
