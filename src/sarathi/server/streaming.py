"""Replies to generation jobs: server-sent events while tokens come, or one JSON body at the end.

A stream costs time per token on cores that the model needs too. So chunks are put together from
bytes that were encoded once, and sent to the server without Starlette's response classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
from starlette.types import Message, Receive, Scope, Send

from sarathi.engine.output_processor import Delta
from sarathi.fleet.generation import EngineError
from sarathi.server.generation_core import Choices, GenerationJob, TokenUsage, join_deltas
from sarathi.server.parsers.output_parser import ParsedDelta
from sarathi.server.responses import ApiError, generation_failed, json_response
from sarathi.server.service import Service

_LOG = logging.getLogger(__name__)
_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or nginx collects the tokens
)

# Encodes the events for what the choice of an index has generated; empty for nothing to send yet.
EncodeDelta = Callable[[int, Delta], bytes]
# Builds the body of a whole reply from the output of each choice.
BuildBody = Callable[[Sequence[ParsedDelta], TokenUsage], msgspec.Struct]


class StreamFraming(Protocol):
    """How one API reports usage, ends a stream, and reports an error in the middle of it."""

    @property
    def report_usage(self) -> Callable[[int, int], None] | None:
        """Called before each delta with the `Choices.token_counts` of its choice.

        None where they are not asked for.
        """

    def end(self, usage: TokenUsage) -> bytes:
        """Return the last events of a complete stream."""

    def error(self, error: ApiError) -> bytes:
        """Return the last event of a stream that has failed."""


@dataclass(frozen=True)
class StreamReply:
    """An ASGI application that generates, and sends server-sent events as tokens come.

    The status line waits for the first tokens, so that a request that the engine refuses still
    gets an error response.
    """

    service: Service
    job: GenerationJob
    encode: EncodeDelta
    framing: StreamFraming

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        choices = Choices(self.service, self.job)
        started = False
        encode = self._encode_with_usage(choices) if self.framing.report_usage else self.encode
        try:
            await choices.start()
            while choices.running:
                deltas = await choices.next()
                body = b"".join([encode(index, delta) for index, delta in deltas])
                if not body:
                    continue
                if not started:
                    started = True
                    await send(_start(choices.scheduling_delay))
                await send({"type": "http.response.body", "body": body, "more_body": True})
            last = self.framing.end(choices.usage)
        except Exception as error:
            answer = self._error_response(error)
            if not started:
                raise answer from error
            last = self.framing.error(answer)
        finally:
            choices.close()
        await send({"type": "http.response.body", "body": last})

    def _encode_with_usage(self, choices: Choices) -> EncodeDelta:
        report_usage = self.framing.report_usage
        assert report_usage is not None

        def encode(index: int, delta: Delta) -> bytes:
            report_usage(*choices.token_counts(index))
            return self.encode(index, delta)

        return encode

    def _error_response(self, error: Exception) -> ApiError:
        if isinstance(error, EngineError):
            return generation_failed(error, self.service.engine.error)
        _LOG.error("A stream failed", exc_info=error)
        return ApiError(500, "The server failed to continue this reply.", code="internal_error")


@dataclass(frozen=True)
class CollectedReply:
    """An ASGI application that generates everything and then sends it as one JSON body."""

    service: Service
    job: GenerationJob
    build_body: BuildBody

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, delay = await self._generate()
        response = json_response(body, headers={"Server-Timing": _server_timing(delay)})
        await response(scope, receive, send)

    async def _generate(self) -> tuple[msgspec.Struct, float]:
        """Return the body, and the scheduling delay of the job in seconds."""
        choices = Choices(self.service, self.job)
        try:
            await choices.start()
            deltas: list[list[Delta]] = [[] for _ in choices.texts]
            while choices.running:
                for index, delta in await choices.next():
                    deltas[index].append(delta)
            outputs = [join_deltas(of_choice) for of_choice in deltas]
            return self.build_body(outputs, choices.usage), choices.scheduling_delay
        except EngineError as error:
            raise generation_failed(error, self.service.engine.error) from error
        finally:
            choices.close()


def _start(scheduling_delay: float) -> Message:
    timing = (b"server-timing", _server_timing(scheduling_delay).encode())
    return {"type": "http.response.start", "status": 200, "headers": [*_HEADERS, timing]}


def _server_timing(scheduling_delay: float) -> str:
    """Return the value of the header Server-Timing, as W3C defines it; the delay is in seconds."""
    return f"queue;dur={scheduling_delay * 1e3:.3f}"
