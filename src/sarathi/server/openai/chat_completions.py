"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import UNSET, Struct, UnsetType
from starlette.types import ASGIApp

from sarathi.engine.messages import ModelInfo
from sarathi.engine.output_processor import Delta
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.sampling.params import SamplingParams
from sarathi.server.generation_core import GenerationJob, TokenUsage
from sarathi.server.openai.conversation import Message, encode_messages
from sarathi.server.openai.generation_request import (
    GenerationRequest,
    sampling_params,
    scheduling_params,
)
from sarathi.server.openai.response_format import (
    MIN_LOGPROB,
    ChunkEncoder,
    WholeResponse,
    new_head,
    token_text,
    whole_response,
)
from sarathi.server.parsers.output_parser import ParsedDelta
from sarathi.server.request_body import Int64, decode, only, value_or
from sarathi.server.responses import invalid
from sarathi.server.service import RequestContext, Service
from sarathi.server.streaming import CollectedReply, StreamReply


class ChatRequest(GenerationRequest, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] | None = None
    max_completion_tokens: Int64 | None = None
    logprobs: bool | None = None
    top_logprobs: Int64 | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None  # no effect without tools

    audio: Annotated[Any, only()] = None
    continue_final_message: Annotated[Any, only(False)] = None
    documents: Annotated[Any, only([])] = None
    function_call: Annotated[Any, only("none")] = None
    functions: Annotated[Any, only([])] = None
    modalities: Annotated[Any, only(["text"])] = None
    prediction: Annotated[Any, only()] = None
    reasoning_effort: Annotated[Any, only("none")] = None
    tool_choice: Annotated[Any, only("none", "auto")] = None
    tools: Annotated[Any, only([])] = None
    verbosity: Annotated[Any, only()] = None
    web_search_options: Annotated[Any, only()] = None


class TopLogprob(Struct, frozen=True):
    """One of the most probable tokens at a position."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct, frozen=True):
    """A sampled token and its alternatives."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    """One entry a token."""

    content: list[TokenLogprob]
    refusal: None = None


class ChatMessage(Struct, frozen=True, kw_only=True):
    """The message that was generated."""

    role: str = "assistant"
    content: str
    reasoning_content: str | UnsetType = UNSET
    refusal: None = None


class ChatChoice(Struct, frozen=True):
    """One output."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatDelta(Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to a message."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None


class ChatChunkChoice(Struct, frozen=True):
    """What a chunk adds to an output."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


async def create_chat_completion(service: Service, call: RequestContext) -> ASGIApp:
    """Answer POST /v1/chat/completions.

    Raises:
        ApiError: the request is wrong, or the engine takes none.
    """
    info = service.ready()
    request = decode(call.body, ChatRequest)
    service.check_model(request.model)
    scheduling = scheduling_params(request, info, call.key_name)
    ids = await encode_messages(
        service,
        call,
        request.messages,
        add_generation_prompt=request.add_generation_prompt,
        add_special_tokens=request.add_special_tokens,
        template_arguments=request.chat_template_kwargs,
    )
    params = _chat_params(request, len(ids), info)
    job = GenerationJob([(ids, params.choices())], scheduling, service.output_parser)
    head = new_head(
        service, "chatcmpl", "chat.completion.chunk" if request.stream else "chat.completion"
    )
    if request.stream:
        framing = ChunkEncoder(head, request.stream_options)
        chunks = ChatChunks(service.tokenizer, framing)
        encode = chunks.encode if job.parser is None else chunks.encode_parsed
        return StreamReply(service, job, encode, framing)

    def body(outputs: Sequence[ParsedDelta], usage: TokenUsage) -> WholeResponse:
        choices = [
            ChatChoice(
                index,
                ChatMessage(content=output.text, reasoning_content=output.reasoning or UNSET),
                None if params.logprobs is None else _logprobs(service.tokenizer, output),
                output.finish_reason,
            )
            for index, output in enumerate(outputs)
        ]
        return whole_response(head, choices, usage)

    return CollectedReply(service, job, body)


@dataclass(frozen=True)
class ChatChunks:
    """Encodes the chunks of one stream."""

    tokenizer: Tokenizer
    chunks: ChunkEncoder
    _started: set[int] = field(default_factory=set)  # choices whose role has been sent

    def encode(self, index: int, delta: Delta) -> bytes:
        """Return the chunks for what a choice has generated; the first has the role."""
        start = b"" if index in self._started else self._start(index)
        if not (delta.text or delta.logprobs or delta.finish_reason):
            return start
        logprobs = _logprobs(self.tokenizer, delta) if delta.logprobs else None
        text = ChatDelta(content=delta.text or None)
        choice = ChatChunkChoice(index, text, logprobs, delta.finish_reason)
        return start + self.chunks.chunk(choice)

    def encode_parsed(self, index: int, delta: Delta) -> bytes:
        """Return what `encode` returns, with a chunk for the reasoning in a parsed delta."""
        assert isinstance(delta, ParsedDelta)
        start = b"" if index in self._started else self._start(index)
        if delta.reasoning:
            text = ChatDelta(reasoning_content=delta.reasoning)
            start += self.chunks.chunk(ChatChunkChoice(index, text, None, None))
        return start + self.encode(index, delta)

    def _start(self, index: int) -> bytes:
        self._started.add(index)
        role = ChatDelta(role="assistant", content="")
        return self.chunks.chunk(ChatChunkChoice(index, role, None, None))


def _logprobs(tokenizer: Tokenizer, delta: Delta) -> ChatLogprobs:
    return ChatLogprobs(
        [
            TokenLogprob(
                token_text(tokenizer, token),
                max(at.logprob, MIN_LOGPROB),
                list(tokenizer.token_bytes(token)),
                [
                    TopLogprob(
                        token_text(tokenizer, top),
                        max(logprob, MIN_LOGPROB),
                        list(tokenizer.token_bytes(top)),
                    )
                    for top, logprob in zip(at.top_ids, at.top_logprobs, strict=True)
                ],
            )
            for token, at in zip(delta.token_ids, delta.logprobs, strict=True)
        ]
    )


def _chat_params(request: ChatRequest, prompt_tokens: int, info: ModelInfo) -> SamplingParams:
    """Return the sampling parameters.

    Raises:
        ApiError: status 400, naming the field that is out of range.
    """
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid("top_logprobs needs logprobs to be true.", "top_logprobs")
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise invalid(
            "max_tokens and max_completion_tokens differ; give one of them.",
            "max_completion_tokens",
        )
    names = {"logprobs": "top_logprobs"}
    if new is not None:
        names["max_tokens"] = "max_completion_tokens"
    return sampling_params(
        request,
        info,
        prompt_tokens,
        max_tokens=value_or(new, old),
        default_max_tokens=None,
        logprobs=value_or(request.top_logprobs, 0) if request.logprobs else None,
        field_names=names,
    )
