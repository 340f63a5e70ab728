"""A client that costs next to nothing, since it shares the cores with the server it measures.

It writes one request on a bare socket and looks for the events that come back, without parsing
HTTP or JSON.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, cast

_EVENT = b"data: {"
_DONE = b"data: [DONE]"


class StreamError(RuntimeError):
    """The server refused a request or closed the connection; the message is what it sent."""


class Stream(asyncio.Protocol):
    """One streamed completion, timed from outside."""

    def __init__(self, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = loop.create_future()
        self.sent = 0.0  # seconds, perf_counter
        self.arrivals: list[float] = []  # of each piece of data with an event in it
        self._request = request
        self._transport: asyncio.Transport | None = None
        self._line = b""  # the unfinished one

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked with isinstance: the transports of uvloop do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self.sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        text = self._line + data
        if _EVENT in text:
            self.arrivals.append(now)
        if _DONE in text and not self.done.done():
            self.done.set_result(None)
            self.close()
        elif text.startswith(b"HTTP/1.1 ") and not text.startswith(b"HTTP/1.1 200"):
            self._fail(text)
        # Before the first event the head is kept, for its status.
        self._line = text[text.rfind(b"\n") + 1 :] if self.arrivals else text

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(self._line or b"the connection was closed")

    def close(self) -> None:
        """Close the connection; the server cancels the request."""
        self.done.cancel()
        if self._transport is not None:
            self._transport.close()

    def _fail(self, text: bytes) -> None:
        if not self.done.done():
            self.done.set_exception(StreamError(text.decode(errors="replace")))
        self.close()


async def open_stream(port: int, prompt: list[int], max_tokens: int) -> Stream:
    """Start a greedy completion of exactly `max_tokens` tokens."""
    fields = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    return await post_stream(port, "/v1/completions", fields)


async def post_stream(port: int, path: str, fields: dict[str, Any]) -> Stream:
    """Send a body with these fields, to be answered by a stream."""
    body = json.dumps({**fields, "stream": True}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_connection(
        lambda: Stream(head.encode() + body), "127.0.0.1", port
    )
    return stream
