"""POST /v1/chat/completions: the messages of a conversation, their prompt, and the reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType
from starlette.types import ASGIApp

from sarathi.engine.messages import ModelInfo
from sarathi.engine.output_processor import Delta
from sarathi.models.tokenizers.chat_template import WorkLimit
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.sampling.params import SamplingParams
from sarathi.server.generation_core import CollectedReply, GenerationJob, StreamReply, TokenUsage
from sarathi.server.openai.generation_request import (
    MIN_LOGPROB,
    ChunkEncoder,
    GenerationRequest,
    WholeResponse,
    new_head,
    sampling_params,
    scheduling_params,
    token_text,
    whole_response,
)
from sarathi.server.parsers.output_parser import ParsedDelta
from sarathi.server.request_body import Int64, decode, only, unsupported, value_or
from sarathi.server.responses import invalid, missing
from sarathi.server.service import RequestContext, Service

# Arguments of the template that have a request field or a meaning of their own.
_RESERVED = frozenset({"messages", "add_generation_prompt", "tools", "documents"})
_UNSUPPORTED = ("audio", "function_call", "tool_calls", "annotations")


class Message(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One message of a conversation; the chat template decides which roles make sense."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    tool_calls: Any = None


async def encode_messages(
    service: Service,
    call: RequestContext,
    messages: Sequence[Message] | None,
    *,
    add_generation_prompt: bool | None,
    add_special_tokens: bool | None,
    template_arguments: Mapping[str, Any] | None,
) -> list[int]:
    """Render the chat template and return its prompt tokens; the last arguments are a request's.

    Raises:
        ApiError: the messages are wrong, or not what the model's template allows.
    """
    template = service.tokenizer.chat_template
    if template is None:
        raise invalid("The model has no chat template; use /v1/completions.", "messages")
    if messages is None:
        raise missing("messages")
    if not messages:
        raise invalid("messages is empty.", "messages")
    extra = dict(template_arguments or {})
    if reserved := sorted(_RESERVED & extra.keys()):
        raise invalid(
            f"chat_template_kwargs may not have {', '.join(reserved)}.", "chat_template_kwargs"
        )
    generation_prompt = value_or(add_generation_prompt, True)
    # Templates write the special tokens themselves.
    special_tokens = value_or(add_special_tokens, False)

    def work(limit: WorkLimit) -> list[int]:
        plain = [_template_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
        try:
            text = template.render_within(limit, plain, generation_prompt, **extra)
        except ValueError as error:
            raise invalid(f"The chat template refuses the messages: {error}", "messages") from None
        return service.encode(text, special_tokens, limit)

    ids = await service.pool.run(len(call.body), work, renders=True)
    if not ids:
        raise invalid("messages has no tokens.", "messages")
    return ids


def _template_message(message: Message, path: str) -> dict[str, str]:
    for name in _UNSUPPORTED:
        if getattr(message, name):
            raise unsupported(f"{path}.{name}")
    plain = {"role": message.role, "content": _content(message, path)}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _content(message: Message, path: str) -> str:
    """Return the text; the parts of a list are separated by a line break."""
    content = message.content
    if content is None:
        content = message.refusal
    if content is None:
        raise invalid(f"{path}.content is required.", f"{path}.content")
    if isinstance(content, str):
        return content
    if not content:
        raise invalid(f"{path}.content is empty.", f"{path}.content")
    return "\n".join(
        _part_text(part, f"{path}.content[{number}]") for number, part in enumerate(content)
    )


def _part_text(part: Mapping[str, Any], path: str) -> str:
    if part.get("type") != "text":
        raise invalid(
            f"{path}.type is {part.get('type')!r:.50}; only text is supported.", f"{path}.type"
        )
    if unknown := sorted(part.keys() - {"type", "text"}):
        raise invalid(f"Unknown field {unknown[0]!r:.50} in {path}.", f"{path}.{unknown[0]:.50}")
    text = part.get("text")
    if not isinstance(text, str):
        raise invalid(f"{path}.text is not a string.", f"{path}.text")
    return text


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
