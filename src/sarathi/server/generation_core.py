"""The generation core: from a job that any API has made to a stream of deltas, and to the reply.

An API translates its request to a `GenerationJob`, and the deltas of `Choices` to its response:
server-sent events while tokens come, or one JSON body at the end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import msgspec
from starlette.types import Message, Receive, Scope, Send

from sarathi.engine.messages import TokenOutput
from sarathi.engine.output_processor import Delta, OutputText
from sarathi.fleet.engine_client import EngineError, Generation
from sarathi.sampling.params import SamplingParams
from sarathi.scheduler import SchedulingParams
from sarathi.server.parsers.output_parser import OutputParser, ParsedDelta, ParserFactory
from sarathi.server.responses import ApiError, generation_failed, json_response
from sarathi.server.service import Service

_SUBMIT_SECONDS = 0.005  # of submitting between two pauses


@dataclass(frozen=True)
class GenerationJob:
    """What to generate: one choice for every pair of a prompt and one of its parameters."""

    prompts: Sequence[tuple[Sequence[int], Sequence[SamplingParams]]]
    scheduling: SchedulingParams
    parser: ParserFactory | None = None  # of the output text; None: all of it is content

    @property
    def choices(self) -> list[tuple[Sequence[int], SamplingParams]]:
        """The prompt and the params of each choice, in order of their index."""
        return [(prompt, one) for prompt, params in self.prompts for one in params]


class TokenUsage(msgspec.Struct, frozen=True):
    """Tokens of a whole job."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # prompt tokens that were found in the prefix cache


class Choices:
    """Submits a job and yields what its choices generate; choice i is of prompt `i // n`.

    It must be closed in any case, which frees the KV blocks of the choices that still run.
    """

    def __init__(self, service: Service, job: GenerationJob) -> None:
        """Nothing is submitted yet; see `start`."""
        self.texts: list[OutputText] = []
        self.scheduling_delay = 0.0  # seconds; the longest of those that have had a token
        self._service = service
        self._job = job
        self._prompt_lengths = [len(prompt) for prompt, _ in job.choices]
        self._prompt_tokens = sum(len(prompt) for prompt, _ in job.prompts)
        self._cached_tokens = 0
        # The index of each prompt's first choice.
        self._firsts = frozenset(accumulate((len(n) for _, n in job.prompts[:-1]), initial=0))
        self._running = len(self._prompt_lengths)
        self._generations: list[Generation] = []
        self._merged: MergedGenerations | None = None
        self._parsers: list[OutputParser] | None = None
        if job.parser is not None:
            self._parsers = [job.parser() for _ in self._prompt_lengths]

    async def start(self) -> None:
        """Submit all choices, pausing now and then because there may be a thousand long ones.

        Raises:
            EngineError: the engine takes no requests.
        """
        service, scheduling = self._service, self._job.scheduling
        pause_at = time.monotonic() + _SUBMIT_SECONDS
        for prompt, params in self._job.choices:
            self.texts.append(OutputText(service.tokenizer, params, prompt))
            self._generations.append(service.engine.submit(prompt, params, scheduling))
            if time.monotonic() > pause_at:
                await asyncio.sleep(0)
                pause_at = time.monotonic() + _SUBMIT_SECONDS
        if len(self._generations) > 1:
            self._merged = MergedGenerations(self._generations)

    @property
    def running(self) -> bool:
        """Whether a choice has not ended."""
        return self._running > 0

    @property
    def usage(self) -> TokenUsage:
        """The tokens of all prompts and choices."""
        completion_tokens = sum(text.num_tokens for text in self.texts)
        return TokenUsage(self._prompt_tokens, completion_tokens, self._cached_tokens)

    def token_counts(self, index: int) -> tuple[int, int]:
        """Return the tokens of a choice's prompt and of its output so far, sent or not."""
        return self._prompt_lengths[index], self.texts[index].num_tokens

    async def next(self) -> list[tuple[int, Delta]]:
        """Wait for tokens of any running choice; return the deltas with their choices' indices.

        Raises:
            EngineError: see `Generation.next`.
        """
        if self._merged is None:
            ready = [(0, await self._generations[0].next())]
        else:
            ready = await self._merged.next()
        deltas = []
        for index, outputs in ready:
            text = self.texts[index]
            if text.finish_reason is not None:
                continue  # computed before the engine learned of the stop string
            if not text.num_tokens:
                self._record_first(index, outputs[0])
            delta = text.push(outputs)
            if delta.finish_reason is not None:
                self._running -= 1
                self._generations[index].stop()
            if self._parsers is not None:
                delta = _parse(self._parsers[index], delta)
            deltas.append((index, delta))
        return deltas

    def close(self) -> None:
        """Cancel the choices that still run."""
        for generation in self._generations:
            generation.cancel()
        if self._merged is not None:
            self._merged.close()

    def _record_first(self, index: int, output: TokenOutput) -> None:
        """Record what comes with a choice's first token."""
        if output.scheduling_delay is not None:
            self.scheduling_delay = max(self.scheduling_delay, output.scheduling_delay)
        if index in self._firsts:  # a prompt's other choices find what the first has computed
            self._cached_tokens += output.cached_tokens


def join_deltas(deltas: Sequence[Delta]) -> ParsedDelta:
    """Return consecutive deltas of one choice as one."""
    return ParsedDelta(
        "".join(delta.text for delta in deltas),
        [token for delta in deltas for token in delta.token_ids],
        [logprobs for delta in deltas for logprobs in delta.logprobs],
        [offset for delta in deltas for offset in delta.offsets],
        deltas[-1].finish_reason,
        "".join(delta.reasoning for delta in deltas if isinstance(delta, ParsedDelta)),
    )


def _parse(parser: OutputParser, delta: Delta) -> ParsedDelta:
    parsed = parser.push(delta.text)
    content, reasoning = parsed.content, parsed.reasoning
    if delta.finish_reason is not None:
        rest = parser.flush()
        content += rest.content
        reasoning += rest.reasoning
    return ParsedDelta(
        content, delta.token_ids, delta.logprobs, delta.offsets, delta.finish_reason, reasoning
    )


class MergedGenerations:
    """Waits for several generations at once."""

    def __init__(self, generations: Sequence[Generation]) -> None:
        self._ready: list[tuple[int, list[TokenOutput]]] = []
        self._error: BaseException | None = None
        self._wake = asyncio.Event()
        self._tasks = [
            asyncio.create_task(self._follow(index, generation))
            for index, generation in enumerate(generations)
        ]

    async def next(self) -> list[tuple[int, list[TokenOutput]]]:
        """Wait for tokens; return them with the indices of their generations."""
        await self._wake.wait()
        self._wake.clear()
        if self._error is not None:
            raise self._error
        ready, self._ready = self._ready, []
        return ready

    def close(self) -> None:
        """Stop waiting."""
        for task in self._tasks:
            task.cancel()

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
