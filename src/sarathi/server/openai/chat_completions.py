"""POST /v1/chat/completions: the messages of a conversation, their prompt, and the reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

from msgspec import UNSET, Struct, UnsetType
from starlette.types import ASGIApp

from sarathi.engine.messages import ModelInfo
from sarathi.engine.output_processor import Delta
from sarathi.models.tokenizers.chat_template import WorkLimit
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.sampling.params import SamplingParams
from sarathi.server.generation_core import Choices, GenerationJob, GenerationReply
from sarathi.server.openai.generation_reply import Choice, OpenAITranslator, text_and_logprob
from sarathi.server.openai.generation_request import (
    GenerationRequest,
    sampling_params,
    scheduling_params,
)
from sarathi.server.parsers.output_parser import ParsedDelta
from sarathi.server.request_body import Int64, only, unsupported, value_or
from sarathi.server.responses import invalid, missing
from sarathi.server.service import RequestContext, Service

# Arguments of the template that have a request field or a meaning of their own.
_RESERVED = frozenset({"messages", "add_generation_prompt", "tools", "documents"})
_UNSUPPORTED = ("audio", "function_call", "tool_calls", "annotations")


class Message(Struct, forbid_unknown_fields=True, kw_only=True):
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


class ConversationRequest(Protocol):
    """The fields of a request that determine the prompt of a conversation."""

    messages: list[Message] | None
    add_generation_prompt: bool | None
    add_special_tokens: bool | None
    chat_template_kwargs: dict[str, Any] | None


async def encode_messages(
    service: Service, call: RequestContext, request: ConversationRequest
) -> list[int]:
    """Return the prompt tokens; raise `ApiError` for what the model's template does not allow."""
    template = service.tokenizer.chat_template
    if template is None:
        raise invalid("The model has no chat template; use /v1/completions.", "messages")
    messages = request.messages
    if messages is None:
        raise missing("messages")
    if not messages:
        raise invalid("messages is empty.", "messages")
    extra = request.chat_template_kwargs or {}
    if reserved := sorted(_RESERVED & extra.keys()):
        raise invalid(
            f"chat_template_kwargs may not have {', '.join(reserved)}.", "chat_template_kwargs"
        )
    generation_prompt = value_or(request.add_generation_prompt, True)
    # Templates write the special tokens themselves.
    special_tokens = value_or(request.add_special_tokens, False)

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
    """Return what the template gets; the parts of a list are separated by a line break."""
    for name in _UNSUPPORTED:
        if getattr(message, name):
            raise unsupported(f"{path}.{name}")
    content = message.refusal if message.content is None else message.content
    if content is None:
        raise invalid(f"{path}.content is required.", f"{path}.content")
    if content == []:
        raise invalid(f"{path}.content is empty.", f"{path}.content")
    if not isinstance(content, str):
        parts = enumerate(content)
        content = "\n".join(_part_text(part, f"{path}.content[{i}]") for i, part in parts)
    optional = {"name": message.name, "tool_call_id": message.tool_call_id}
    given = {name: value for name, value in optional.items() if value is not None}
    return {"role": message.role, "content": content, **given}


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


class ChatRequest(GenerationRequest, kw_only=True):
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


class TokenLogprob(TopLogprob, frozen=True):
    """A sampled token and its alternatives."""

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


class ChatDelta(Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to a message."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None


class ChatChoice(Choice, frozen=True):
    """A choice of a message."""

    message: ChatMessage | UnsetType = UNSET
    delta: ChatDelta | UnsetType = UNSET
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


async def create_chat_completion(service: Service, call: RequestContext) -> ASGIApp:
    """Answer POST /v1/chat/completions; raises `ApiError` for a wrong request."""
    info, request = service.read(call, ChatRequest)
    scheduling = scheduling_params(request, info, call.key_name)
    ids = await encode_messages(service, call, request)
    params = _chat_params(request, len(ids), info)
    job = GenerationJob([(ids, params.choices())], scheduling, service.output_parser)
    translator = ChatTranslator(service, request)
    return GenerationReply(service, job, translator, bool(request.stream))


class ChatTranslator(OpenAITranslator):
    """Makes the choices of chat completions."""

    def __init__(self, service: Service, request: ChatRequest) -> None:
        name = "chat.completion.chunk" if request.stream else "chat.completion"
        super().__init__(service, request, "chatcmpl", name)
        self._with_logprobs = bool(request.logprobs)
        self._started: set[int] = set()  # choices whose role has been sent

    def choice(self, index: int, output: ParsedDelta) -> ChatChoice:
        message = ChatMessage(content=output.text, reasoning_content=output.reasoning or UNSET)
        logprobs = _logprobs(self.tokenizer, output) if self._with_logprobs else None
        return ChatChoice(index, message, UNSET, logprobs, output.finish_reason)

    def events(self, index: int, delta: Delta, choices: Choices) -> bytes:
        events = b""
        if index not in self._started:
            self._started.add(index)
            role = ChatDelta(role="assistant", content="")
            events = self.chunk(ChatChoice(index, delta=role), choices)
        # Not `isinstance`, which takes a tenth of the time of a chunk for a struct.
        if type(delta) is ParsedDelta and delta.reasoning:
            reasoning = ChatDelta(reasoning_content=delta.reasoning)
            events += self.chunk(ChatChoice(index, delta=reasoning), choices)
        if delta.text or delta.logprobs or delta.finish_reason:
            logprobs = _logprobs(self.tokenizer, delta) if delta.logprobs else None
            content = ChatDelta(content=delta.text or None)
            choice = ChatChoice(index, UNSET, content, logprobs, delta.finish_reason)
            events += self.chunk(choice, choices)
        return events


def _logprobs(tokenizer: Tokenizer, delta: Delta) -> ChatLogprobs:
    def described(token: int, logprob: float) -> tuple[str, float, list[int]]:
        text, shown = text_and_logprob(tokenizer, token, logprob)
        return text, shown, list(tokenizer.token_bytes(token))

    return ChatLogprobs(
        [
            TokenLogprob(
                *described(token, at.logprob),
                [
                    TopLogprob(*described(top, logprob))
                    for top, logprob in zip(at.top_ids, at.top_logprobs, strict=True)
                ],
            )
            for token, at in zip(delta.token_ids, delta.logprobs, strict=True)
        ]
    )


def _chat_params(request: ChatRequest, prompt_tokens: int, info: ModelInfo) -> SamplingParams:
    """Return the sampling parameters; raise `ApiError` naming the field that is out of range."""
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid("top_logprobs needs logprobs to be true.", "top_logprobs")
    names = {"logprobs": "top_logprobs"}
    if request.max_completion_tokens is not None:
        if request.max_tokens not in (None, request.max_completion_tokens):
            raise invalid(
                "max_tokens and max_completion_tokens differ; give one of them.",
                "max_completion_tokens",
            )
        request.max_tokens = request.max_completion_tokens
        names["max_tokens"] = "max_completion_tokens"
    logprobs = value_or(request.top_logprobs, 0) if request.logprobs else None
    return sampling_params(request, info, prompt_tokens, logprobs=logprobs, field_names=names)
