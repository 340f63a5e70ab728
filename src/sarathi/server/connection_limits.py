"""Limits of connections: what one may send, and how long, before the application sees it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, NoReturn

import httptools
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from sarathi.server.auth import OPEN_PATHS
from sarathi.server.responses import ApiError, error_response, raw_error_response, unavailable


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of each connection and their number. The defaults are those of common web servers."""

    head_bytes: int = 64 * 2**10  # of a request's line and headers together
    header_fields: int = 128
    pipelined: int = 16  # requests sent before the reply to an earlier one is complete
    head_seconds: float = 20.0  # from its first byte to its last
    body_seconds: float = 120.0
    unread_seconds: float = 120.0  # in which a client reads nothing of its reply
    connections: int | None = None  # open at the same time; None: any number
    idle_seconds: float = 1.0  # the same for heads, bodies and replies when there are too many


class IdleConnections:
    """Connections that wait for their clients to send or read something, longest idle first."""

    def __init__(self) -> None:
        self._since: dict[BoundedProtocol, float] = {}  # seconds, of the connection's loop

    def add(self, connection: BoundedProtocol) -> None:
        """Record that a connection is idle from now on."""
        self.discard(connection)
        self._since[connection] = connection.loop.time()

    def discard(self, connection: BoundedProtocol) -> None:
        """Record that a connection is not idle."""
        self._since.pop(connection, None)

    def close_one(self, idle_seconds: float) -> None:
        """Close the longest idle one if it has been so that long: a client may hoard them."""
        connection, since = next(iter(self._since.items()), (None, 0.0))
        if connection is not None and connection.loop.time() - since >= idle_seconds:
            self.discard(connection)
            connection.transport.abort()


class BoundedProtocol(HttpToolsProtocol):
    """Uvicorn's protocol, with limits that its parser does not have.

    The parser joins each piece of an unfinished line to the previous ones, which takes quadratic
    time without a limit. Here it is fed in pieces, and a connection that sends `head_bytes`
    without completing a head or a part of a body is refused: also in chunk extensions and trailers.

    Depends on internals of Uvicorn, whose version is pinned for it.
    """

    def __init__(
        self, limits: ConnectionLimits, idle: IdleConnections, config: Config, **kwargs: Any
    ) -> None:
        super().__init__(config, **kwargs)
        self._limits = limits
        self._idle = idle  # shared by all connections of a server
        self._in_head = True
        self._offers_upgrade = False
        self._unparsed = 0  # bytes since the parser has completed something
        self._refusal: ApiError | None = None
        self._timer: asyncio.TimerHandle | None = None  # for what the client sends
        self._unread_timer: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None  # behind it, others may be pipelined

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle.add(self)
        seconds = self._limits.head_seconds
        if self._over_limit:
            seconds = self._limits.idle_seconds
            self._idle.close_one(seconds)
        self._start_timer(seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.resume_writing()
        self._idle.discard(self)
        # Of several pipelined requests, the base class notifies only the last one.
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._in_head and self._timer is None:
            self._start_timer(self._limits.head_seconds)
        most = self._limits.head_bytes
        while data and not self.transport.is_closing():
            free = most - self._unparsed
            piece, data = data[:free], data[free:]
            self._unparsed += len(piece)
            data = self._feed(piece) + data
            if self._unparsed >= most:
                self._refuse(_too_large(f"{most} bytes", in_head=self._in_head))

    def _feed(self, piece: bytes) -> bytes:
        """Feed the parser; return what has to be fed next, before anything else."""
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            if self._offers_upgrade:
                return self._head_without_offer() + piece[upgrade.args[0] :]
        except httptools.HttpParserError:
            self.send_400_response("This is no valid HTTP request.")
        return b""

    def _head_without_offer(self) -> bytes:
        """Return the head of a request that offers another protocol, without the offer.

        The parser takes all that follows such a head for that protocol, even the body of the
        request, and has to restart. Some clients offer HTTP/2 with every first request.
        """
        self._offers_upgrade = False
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                value = b", ".join(option for option in options if option.lower() != b"upgrade")
            if name != b"upgrade" and value:
                lines.append(b"%s: %s" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        return b"\r\n".join([*lines, b"", b""])

    # -- what the parser has completed ------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        most = self._limits.header_fields
        if len(self.headers) > most:
            self._refuse_in_parser(_too_large(f"{most} headers", in_head=self._in_head))

    def on_headers_complete(self) -> None:
        self._unparsed = 0
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._offers_upgrade = True  # the parser stops here, see `_feed`
            return
        self._in_head = False
        self._start_timer(self._limits.body_seconds)
        if len(self.pipeline) >= self._limits.pipelined:
            # Each costs far more memory than its sender spends.
            self._refuse_in_parser(ApiError(400, "Too many pipelined requests.", code="pipelining"))
        app = self.config.loaded_app
        self.app = _refusing(app) if self._over_limit else app
        super().on_headers_complete()
        if self.pipeline:
            self.flow.resume_reading()  # or a disconnect would not be noticed

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not (self.pipeline or self.transport.is_closing()):
            self._idle.add(self)

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        self._idle.add(self)
        super().on_body(body)
        if self.pipeline and self.flow.read_paused:
            message = "The body of a pipelined request is too large."
            self._refuse_in_parser(ApiError(400, message, code="pipelining"))

    def on_message_complete(self) -> None:
        if self._offers_upgrade:
            return
        self._in_head = True
        self._unparsed = 0
        self._stop_timer()
        self._idle.discard(self)
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._idle.add(self)
        self._unread_timer = self.loop.call_later(self._limits.unread_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
            if self._running is not None and not self._running.response_complete:
                self._idle.discard(self)

    @property
    def _over_limit(self) -> bool:
        """Whether there are too many connections, this one included."""
        limit = self._limits.connections
        return limit is not None and len(self.connections) > limit

    # -- refusals ---------------------------------------------------------------------------

    def _refuse_in_parser(self, error: ApiError) -> NoReturn:
        """Stop the parser from within a callback; it then calls `send_400_response`."""
        self._refusal = error
        raise ValueError

    def send_400_response(self, msg: str) -> None:
        """Refuse the request, after the parser has found an error or has been stopped."""
        refusal, self._refusal = self._refusal, None
        self._refuse(refusal or ApiError(400, msg, code="invalid_http"))

    def _refuse(self, error: ApiError) -> None:
        if self.transport.is_closing():
            return
        running = self._running
        if running is None or not running.response_started or running.response_complete:
            self.transport.write(raw_error_response(error))  # and never into the middle of a reply
        self.transport.close()

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._time_out, seconds)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self, seconds: float) -> None:
        self._timer = None
        if self.flow.read_paused:  # the server is the one that does not read on
            self._start_timer(seconds)
        elif self._in_head and not self._unparsed:
            self.transport.close()  # no request has arrived
        else:
            what = "head" if self._in_head else "body"
            message = f"The {what} of the request took longer than {seconds:g} seconds."
            self._refuse(ApiError(408, message, code="request_timeout"))


def _too_large(limit: str, *, in_head: bool) -> ApiError:
    if in_head:
        message = f"The head of the request has more than {limit}."
        return ApiError(431, message, code="head_too_large")
    message = f"Chunk headers or trailers of the body have more than {limit}."
    return ApiError(400, message, code="invalid_http")


def _refusing(app: ASGIApp) -> ASGIApp:
    """Return what answers on connections beyond the limit: the application on `OPEN_PATHS` only."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in OPEN_PATHS:
            await app(scope, receive, send)
            return
        message = "The server has no connection left."
        overloaded = unavailable(message, "overloaded", retry_after=1)
        response = error_response(overloaded, scope["path"])
        response.headers["Connection"] = "close"
        await response(scope, receive, send)

    return answer
