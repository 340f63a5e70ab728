"""The generation core: from a job that any API has made to a stream of deltas, and to the reply.

An API translates its request to a `GenerationJob`. Its `Translator` puts what is generated into the
form of the API: server-sent events while tokens come, or one JSON body at the end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import msgspec
from msgspec.structs import replace
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from sarathi.engine.messages import TokenOutput
from sarathi.engine.output_processor import Delta, OutputText
from sarathi.fleet.engine_client import EngineError, Generation
from sarathi.sampling.params import SamplingParams
from sarathi.scheduler import SchedulingParams
from sarathi.server.parsers.output_parser import (
    OutputParser,
    ParsedDelta,
    ParsedText,
    ParserFactory,
    ToolCallDelta,
)
from sarathi.server.responses import ApiError, generation_failed, json_response
from sarathi.server.service import Service

_LOG = logging.getLogger(__name__)
_SUBMIT_SECONDS = 0.005  # of submitting between two pauses
_STREAM_HEADERS = (
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or nginx collects the tokens
)


@dataclass(frozen=True)
class GenerationJob:
    """What to generate: one choice for every pair of a prompt and one of its parameters."""

    prompts: Sequence[tuple[Sequence[int], Sequence[SamplingParams]]]
    scheduling: SchedulingParams
    parser: ParserFactory | None = None  # of the output text; None: all of it is content


class TokenUsage(msgspec.Struct, frozen=True):
    """Tokens of a whole job."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # prompt tokens that were found in the prefix cache
    reasoning_tokens: int = 0  # of the completion tokens


@dataclass(frozen=True, slots=True)
class _Choice:
    prompt_tokens: int
    is_first: bool  # of its prompt; the others find in the prefix cache what it has computed
    text: OutputText
    generation: Generation
    parser: OutputParser | None


class Choices:
    """Submits a job and yields what its choices generate; choice i is of prompt `i // n`.

    It must be closed in any case, which frees the KV blocks of the choices that still run.
    """

    def __init__(self, service: Service, job: GenerationJob) -> None:
        """Nothing is submitted yet; see `start`."""
        self.num_choices = sum(len(params) for _, params in job.prompts)
        self.scheduling_delay = 0.0  # seconds; the longest of those that have had a token
        self._service = service
        self._job = job
        self._choices: list[_Choice] = []
        self._num_running = self.num_choices
        self._cached_tokens = self._reasoning_tokens = 0
        # Of several choices, each is followed by a task; a single one needs none.
        self._followers: list[asyncio.Task[None]] = []
        self._ready: list[tuple[int, list[TokenOutput]]] = []
        self._error: Exception | None = None
        self._wake = asyncio.Event()

    async def start(self) -> None:
        """Submit all choices; raise `EngineError` if the engine takes no requests."""
        engine, tokenizer, job = self._service.fleet, self._service.tokenizer, self._job
        pause_at = time.monotonic() + _SUBMIT_SECONDS  # there may be a thousand long ones
        for prompt, params in job.prompts:
            for number, one in enumerate(params):
                if job.parser is None:
                    text, parser = OutputText(tokenizer, one, prompt), None
                else:
                    text = OutputText(tokenizer, one, prompt, job.parser.visible_ids)
                    parser = job.parser.create()
                generation = engine.submit(prompt, one, job.scheduling)
                self._choices.append(_Choice(len(prompt), number == 0, text, generation, parser))
                if time.monotonic() > pause_at:
                    await asyncio.sleep(0)
                    pause_at = time.monotonic() + _SUBMIT_SECONDS
        if self.num_choices > 1:
            self._followers = [
                asyncio.create_task(self._follow(index, choice.generation))
                for index, choice in enumerate(self._choices)
            ]

    @property
    def running(self) -> bool:
        """Whether a choice has not ended."""
        return self._num_running > 0

    @property
    def usage(self) -> TokenUsage:
        """The tokens of all prompts and choices."""
        prompt_tokens = sum(len(prompt) for prompt, _ in self._job.prompts)
        completion_tokens = sum(choice.text.num_tokens for choice in self._choices)
        return TokenUsage(
            prompt_tokens, completion_tokens, self._cached_tokens, self._reasoning_tokens
        )

    def token_counts(self, index: int) -> tuple[int, int]:
        """Return the tokens of a choice's prompt and of its output so far, sent or not."""
        choice = self._choices[index]
        return choice.prompt_tokens, choice.text.num_tokens

    async def next(self) -> list[tuple[int, Delta]]:
        """Return the deltas of the next tokens with their choices' indices; raise `EngineError`."""
        if self._followers:
            await self._wake.wait()
            self._wake.clear()
            if self._error is not None:
                raise self._error
            ready, self._ready = self._ready, []
        else:
            ready = [(0, await self._choices[0].generation.next())]
        deltas: list[tuple[int, Delta]] = []
        for index, outputs in ready:
            choice = self._choices[index]
            text = choice.text
            if text.finish_reason is not None:
                continue  # computed before the engine learned of the stop string
            if not text.num_tokens:
                for output in outputs:
                    self._record_first(choice, output)
            delta = text.push(outputs)
            if not delta.token_ids and delta.finish_reason is None:
                continue  # log probabilities of a prompt that is still being computed
            if delta.finish_reason is not None:
                self._num_running -= 1
                choice.generation.stop()
            if choice.parser is None:
                deltas.append((index, delta))
                continue
            if choice.parser.in_reasoning:
                self._reasoning_tokens += len(delta.token_ids)
            deltas.extend((index, part) for part in _parse(choice.parser, delta))
        return deltas

    def close(self) -> None:
        """Cancel the choices that still run."""
        for choice in self._choices:
            choice.generation.cancel()
        for task in self._followers:
            task.cancel()

    def _record_first(self, choice: _Choice, output: TokenOutput) -> None:
        """Record what comes with a choice's first token; other outputs have nothing of that."""
        if output.scheduling_delay is not None:
            self.scheduling_delay = max(self.scheduling_delay, output.scheduling_delay)
        if choice.is_first:
            self._cached_tokens += output.cached_tokens

    async def _follow(self, index: int, generation: Generation) -> None:
        try:
            while True:
                outputs = await generation.next()
                self._ready.append((index, outputs))
                self._wake.set()
                if outputs[-1].finish_reason is not None:
                    return
        except Exception as error:  # raised by `next`: nothing else awaits this task
            self._error = error
            self._wake.set()


def join_deltas(deltas: Sequence[Delta]) -> ParsedDelta:
    """Return consecutive deltas of one choice as one, each of its tool calls in one piece."""
    parsed = [delta for delta in deltas if isinstance(delta, ParsedDelta)]
    return ParsedDelta(
        "".join(delta.text for delta in deltas),
        [token for delta in deltas for token in delta.token_ids],
        [logprobs for delta in deltas for logprobs in delta.logprobs],
        [offset for delta in deltas for offset in delta.offsets],
        deltas[-1].finish_reason,
        deltas[-1].stop_string,
        [logprobs for delta in deltas for logprobs in delta.prompt_logprobs],
        "".join(delta.reasoning for delta in parsed),
        _join_calls([call for delta in parsed for call in delta.tool_calls]),
    )


def _join_calls(pieces: Sequence[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
    by_index: dict[int, list[ToolCallDelta]] = {}
    for piece in pieces:
        by_index.setdefault(piece.index, []).append(piece)
    return tuple(
        ToolCallDelta(index, of_call[0].id, of_call[0].name, "".join(p.arguments for p in of_call))
        for index, of_call in by_index.items()
    )


def _parse(parser: OutputParser, delta: Delta) -> list[ParsedDelta]:
    """Return a delta split by meaning: several ones where content follows tool calls."""
    texts = parser.push(delta.text, delta.token_ids).parts
    if delta.finish_reason is not None:
        texts += parser.flush().parts
    texts = [one for one in texts if one.content or one.reasoning or one.tool_calls]
    parts = [
        ParsedDelta(
            one.content, [], [], [], None, reasoning=one.reasoning, tool_calls=one.tool_calls
        )
        for one in texts or [ParsedText()]
    ]
    # Tokens belong to the first, and the end to the last.
    parts[0] = replace(
        parts[0],
        token_ids=delta.token_ids,
        logprobs=delta.logprobs,
        offsets=delta.offsets,
        prompt_logprobs=delta.prompt_logprobs,
    )
    parts[-1] = replace(parts[-1], finish_reason=delta.finish_reason, stop_string=delta.stop_string)
    return parts


class Translator(Protocol):
    """Puts what one job generates into the form of an API."""

    stream_type: bytes = b"text/event-stream; charset=utf-8"

    @abstractmethod
    def events(self, index: int, delta: Delta, choices: Choices) -> bytes:
        """Return the events for what a choice has generated; empty for nothing to send yet."""

    def end(self, usage: TokenUsage) -> bytes:
        """Return the last events of a complete stream."""

    def error(self, error: ApiError) -> bytes:
        """Return the last event of a stream that has failed."""

    def body(self, outputs: Sequence[Sequence[Delta]], usage: TokenUsage) -> object:
        """Return the JSON of a reply that is not streamed, from the deltas of each choice."""


@dataclass(frozen=True)
class GenerationReply:
    """An ASGI application that runs a job and sends what it generates.

    A stream does without Starlette's response classes, which would cost time per token. Its status
    line waits for the first tokens, so that a request that the engine refuses still gets an error
    response. Log probabilities of a long prompt take so long to write that a thread does it.
    """

    service: Service
    job: GenerationJob
    translator: Translator
    stream: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.stream:
            await self._send_stream(send)
        else:
            response = await self._whole_response()
            await response(scope, receive, send)

    async def _send_stream(self, send: Send) -> None:
        started = False
        is_scored = self._is_scored
        try:
            with closing(Choices(self.service, self.job)) as choices:
                await choices.start()
                while choices.running:
                    deltas = await choices.next()
                    if is_scored and any(delta.prompt_logprobs for _, delta in deltas):
                        body = await asyncio.to_thread(self._events, deltas, choices)
                    else:
                        body = self._events(deltas, choices)
                    if not body:
                        continue
                    if not started:
                        started = True
                        await send(self._stream_start(choices))
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                last = self.translator.end(choices.usage)
                if not started:  # an empty output, of which only the end is sent
                    started = True
                    await send(self._stream_start(choices))
        except Exception as error:
            answer = self._error_response(error)
            if not started:
                raise answer from error
            last = self.translator.error(answer)
        await send({"type": "http.response.body", "body": last})

    def _stream_start(self, choices: Choices) -> Message:
        timing = _server_timing(choices.scheduling_delay).encode()
        headers = [(b"content-type", self.translator.stream_type), (b"server-timing", timing)]
        headers.extend(_STREAM_HEADERS)
        return {"type": "http.response.start", "status": 200, "headers": headers}

    async def _whole_response(self) -> Response:
        try:
            with closing(Choices(self.service, self.job)) as choices:
                await choices.start()
                deltas: list[list[Delta]] = [[] for _ in range(choices.num_choices)]
                while choices.running:
                    for index, delta in await choices.next():
                        deltas[index].append(delta)
                if self._is_scored:
                    return await asyncio.to_thread(self._response, deltas, choices)
                return self._response(deltas, choices)
        except EngineError as error:
            raise generation_failed(error, self.service.fleet.error) from error

    @property
    def _is_scored(self) -> bool:
        """Whether log probabilities of prompts are asked for."""
        return any(
            one.prompt_logprobs is not None for _, params in self.job.prompts for one in params
        )

    def _events(self, deltas: Sequence[tuple[int, Delta]], choices: Choices) -> bytes:
        events = self.translator.events
        return b"".join([events(index, delta, choices) for index, delta in deltas])

    def _response(self, deltas: Sequence[Sequence[Delta]], choices: Choices) -> Response:
        body = self.translator.body(deltas, choices.usage)
        timing = _server_timing(choices.scheduling_delay)
        return json_response(body, headers={"Server-Timing": timing})

    def _error_response(self, error: Exception) -> ApiError:
        if isinstance(error, EngineError):
            return generation_failed(error, self.service.fleet.error)
        _LOG.error("A stream failed", exc_info=error)
        return ApiError(500, "The server failed to continue this reply.", code="internal_error")


def _server_timing(scheduling_delay: float) -> str:
    """Return the value of the header Server-Timing, as W3C defines it; the delay is in seconds."""
    return f"queue;dur={scheduling_delay * 1e3:.3f}"
