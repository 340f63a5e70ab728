"""Replies as server-sent events.

Everything here runs once per token and stream on cores that the model needs too: chunks are
put together from bytes that were encoded once, and sent straight to the server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec
from starlette.types import Message, Receive, Scope, Send

from sarathi.engine.output_processor import Delta
from sarathi.fleet.generation import EngineError
from sarathi.server.choices import Choices, GenerationJob
from sarathi.server.openai.api_errors import ApiError, refused
from sarathi.server.openai.request_bodies import StreamOptions
from sarathi.server.openai.response_bodies import ChunkHead, Usage
from sarathi.server.reply import server_timing
from sarathi.server.service import Service

_LOG = logging.getLogger(__name__)
_ENCODER = msgspec.json.Encoder()
_DONE = b"data: [DONE]\n\n"
_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or nginx collects the tokens
)


class ChunkEncoder:
    """Chunks of one stream: a constant beginning, the choice, a constant end."""

    def __init__(self, head: ChunkHead, options: StreamOptions | None) -> None:
        self._include_usage = options is not None and bool(options.include_usage)
        self.continuous_usage = options is not None and bool(options.continuous_usage_stats)
        self._head = b"data: " + _ENCODER.encode(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if self._include_usage else b"]}\n\n"

    def chunk(self, choice: msgspec.Struct) -> bytes:
        return self._head + _ENCODER.encode(choice) + self._tail

    def tell(self, usage: Usage) -> None:
        """The chunks that follow carry this usage."""
        self._tail = _usage_tail(usage)

    def end(self, usage: Usage) -> bytes:
        return self._head + _usage_tail(usage) + _DONE if self._include_usage else _DONE


def _usage_tail(usage: Usage) -> bytes:
    return b'],"usage":' + _ENCODER.encode(usage) + b"}\n\n"


class Events(Protocol):
    """How one API words a stream."""

    @property
    def encoder(self) -> ChunkEncoder: ...

    def event(self, index: int, delta: Delta) -> bytes:
        """The chunks for what a choice has gained; empty when there is nothing to tell yet."""


@dataclass(frozen=True)
class StreamReply:
    """An ASGI application that generates and sends as it goes.

    The status line waits for the first tokens, so that a request the engine refuses still gets a
    proper error.
    """

    service: Service
    job: GenerationJob
    events: Events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        choices = Choices(self.service, self.job)
        started = False
        encoder = self.events.encoder
        event = self._counted(choices) if encoder.continuous_usage else self.events.event
        try:
            await choices.start()
            while choices.running:
                deltas = await choices.next()
                body = b"".join([event(index, delta) for index, delta in deltas])
                if not body:
                    continue
                if not started:
                    started = True
                    await send(_start(choices.scheduling_delay))
                await send({"type": "http.response.body", "body": body, "more_body": True})
            last = encoder.end(choices.usage)
        except Exception as error:
            answer = self._answer(error)
            if not started:
                raise answer from error
            last = b"data: " + _ENCODER.encode(answer.body) + b"\n\n"
        finally:
            choices.close()
        await send({"type": "http.response.body", "body": last})

    def _counted(self, choices: Choices) -> Callable[[int, Delta], bytes]:
        """As `Events.event`, with the choice's usage so far in each chunk."""

        def event(index: int, delta: Delta) -> bytes:
            self.events.encoder.tell(choices.usage_of(index))
            return self.events.event(index, delta)

        return event

    def _answer(self, error: Exception) -> ApiError:
        if isinstance(error, EngineError):
            return refused(error, self.service.engine.error)
        _LOG.error("A stream failed", exc_info=error)
        return ApiError(500, "The server failed to continue this reply.", code="internal_error")


def _start(delay: float) -> Message:
    timing = (b"server-timing", server_timing(delay).encode())
    return {"type": "http.response.start", "status": 200, "headers": [*_HEADERS, timing]}
