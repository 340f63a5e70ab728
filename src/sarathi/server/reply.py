"""Sending a reply, and giving up the work when nobody is left to read it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive

from sarathi.server.openai.api_errors import ApiError

_ENCODER = msgspec.json.Encoder()


def json_response(
    body: msgspec.Struct | dict[str, object],
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> Response:
    return Response(_ENCODER.encode(body), status, headers=headers, media_type="application/json")


def server_timing(delay: float) -> str:
    """The header Server-Timing, as W3C has it; `delay` is the scheduling delay in seconds."""
    return f"queue;dur={delay * 1e3:.3f}"


def error_response(error: ApiError) -> Response:
    return json_response(error.body, error.status, error.headers)


def encode_error(error: ApiError) -> bytes:
    """The bytes of an HTTP response that ends its connection, for where there is no request."""
    body = _ENCODER.encode(error.body)
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work`, cancelling it when the client goes away.

    To be called after the whole body has been read: the next message can only be a disconnect.
    """
    worker = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (worker, watcher):
            if not task.done():
                task.cancel()
        await asyncio.wait({worker, watcher})
    if not worker.cancelled():
        worker.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
