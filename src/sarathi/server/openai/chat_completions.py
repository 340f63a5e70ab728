"""POST /v1/chat/completions."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from msgspec import UNSET, Struct, UnsetType
from starlette.types import ASGIApp

from sarathi.engine.output_processor import Delta
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.server.conversation import ToolChoice, ToolMode
from sarathi.server.conversation_reply import conversation_reply
from sarathi.server.generation_core import Choices
from sarathi.server.generation_request import GenerationRequest
from sarathi.server.openai.chat_messages import Message, Tools, read_conversation
from sarathi.server.openai.generation_reply import Choice, OpenAITranslator, text_and_logprob
from sarathi.server.parsers.output_parser import ParsedDelta, ToolCallDelta
from sarathi.server.request_body import NOT_GIVEN, Int64, NoEffect, only, value_or
from sarathi.server.responses import invalid
from sarathi.server.service import RequestContext, Service
from sarathi.server.structured_output import requested_constraint


class ChosenFunction(Struct):
    """The function of a tool choice."""

    name: str


class ChosenTool(Struct):
    """A tool that the model has to call."""

    type: Literal["function"]
    function: ChosenFunction


class ChatRequest(GenerationRequest, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] | None = None
    max_completion_tokens: Int64 | None = None
    logprobs: bool | None = None
    top_logprobs: Int64 | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Tools = None
    tool_choice: ToolMode | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None

    enable_thinking: bool | None = None  # an argument of the template, as is `thinking`
    thinking: Any = None

    prediction: NoEffect = NOT_GIVEN  # would save time
    verbosity: NoEffect = NOT_GIVEN  # a hint to OpenAI's models

    audio: Annotated[Any, only()] = None
    best_of: Annotated[Any, only(1)] = None
    chat_template: Annotated[Any, only()] = None
    continue_final_message: Annotated[Any, only(False)] = None
    documents: Annotated[Any, only([])] = None
    echo: Annotated[Any, only(False)] = None
    function_call: Annotated[Any, only("auto", "none")] = None
    functions: Annotated[Any, only([])] = None
    include_reasoning: Annotated[Any, only(True)] = None
    modalities: Annotated[Any, only(["text"])] = None
    thinking_token_budget: Annotated[Any, only()] = None
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


class ReplyFunction(Struct, frozen=True, omit_defaults=True):
    """The function of a call, or what a chunk adds to it."""

    arguments: str
    name: str | None = None


class ReplyToolCall(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A tool call, or what a chunk adds to it."""

    index: int | UnsetType = UNSET  # in chunks
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: ReplyFunction


class ChatMessage(Struct, frozen=True, kw_only=True):
    """The message that was generated."""

    role: str = "assistant"
    content: str | None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ReplyToolCall] | UnsetType = UNSET
    refusal: None = None


class ChatDelta(Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to a message."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ReplyToolCall] | None = None


class ChatChoice(Choice, frozen=True):
    """A choice of a message."""

    message: ChatMessage | UnsetType = UNSET
    delta: ChatDelta | UnsetType = UNSET
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


async def create_chat_completion(service: Service, call: RequestContext) -> ASGIApp:
    """Answer POST /v1/chat/completions; raises `ApiError` for a wrong request."""
    _, request = service.read(call, ChatRequest)
    if request.top_logprobs and not request.logprobs:
        raise invalid("top_logprobs needs logprobs to be true.", "top_logprobs")
    names = {"logprobs": "top_logprobs"}
    if request.max_completion_tokens is not None:  # its older name has no effect beside it
        request.max_tokens = request.max_completion_tokens
        names["max_tokens"] = "max_completion_tokens"
    choice = request.tool_choice
    if isinstance(choice, ChosenTool):
        tool_choice = ToolChoice("required", choice.function.name)
    else:
        tool_choice = ToolChoice(value_or(choice, "auto"))
    conversation = replace(
        read_conversation(request),
        tool_choice=tool_choice,
        parallel_tool_calls=value_or(request.parallel_tool_calls, True),
        reasoning_effort=request.reasoning_effort,
        constraint=requested_constraint(request),
    )
    return await conversation_reply(
        service,
        call,
        conversation,
        request,
        ChatTranslator(service, request),
        logprobs=value_or(request.top_logprobs, 0) if request.logprobs else None,
        field_names=names,
    )


class ChatTranslator(OpenAITranslator):
    """Makes the choices of chat completions."""

    def __init__(self, service: Service, request: ChatRequest) -> None:
        name = "chat.completion.chunk" if request.stream else "chat.completion"
        super().__init__(service, request, "chatcmpl", name)
        self._with_logprobs = bool(request.logprobs)
        self._started: set[int] = set()  # choices whose role has been sent
        self._called: set[int] = set()  # choices that have tool calls

    def choice(self, index: int, output: ParsedDelta) -> ChatChoice:
        calls = [
            ReplyToolCall(
                id=call.id, type="function", function=ReplyFunction(call.arguments, call.name)
            )
            for call in output.tool_calls
        ]
        message = ChatMessage(
            content=None if calls and not output.text else output.text,
            reasoning_content=output.reasoning or UNSET,
            tool_calls=calls or UNSET,
        )
        logprobs = chat_logprobs(self.tokenizer, output) if self._with_logprobs else None
        reason = _finish_reason(output, called=bool(calls))
        return ChatChoice(index, message, UNSET, logprobs, reason)

    def events(self, index: int, delta: Delta, choices: Choices) -> bytes:
        events = b""
        if index not in self._started:
            self._started.add(index)
            role = ChatDelta(role="assistant", content="")
            events = self.chunk(ChatChoice(index, delta=role), choices)
        # Not `isinstance`, which takes a tenth of the time of a chunk for a struct.
        if type(delta) is ParsedDelta:
            if delta.reasoning:
                reasoning = ChatDelta(reasoning_content=delta.reasoning)
                events += self.chunk(ChatChoice(index, delta=reasoning), choices)
            if delta.tool_calls:
                return events + self._tool_call_events(index, delta, choices)
        if delta.text or delta.logprobs or delta.finish_reason:
            logprobs = chat_logprobs(self.tokenizer, delta) if delta.logprobs else None
            content = ChatDelta(content=delta.text or None)
            reason = _finish_reason(delta, called=index in self._called)
            events += self.chunk(ChatChoice(index, UNSET, content, logprobs, reason), choices)
        return events

    def _tool_call_events(self, index: int, delta: ParsedDelta, choices: Choices) -> bytes:
        """Return the events of a delta with tool calls, its content first, its end last."""
        self._called.add(index)
        events = b""
        if delta.text:
            content = ChatDelta(content=delta.text)
            events = self.chunk(ChatChoice(index, delta=content), choices)
        calls = ChatDelta(tool_calls=[_streamed_call(call) for call in delta.tool_calls])
        logprobs = chat_logprobs(self.tokenizer, delta) if delta.logprobs else None
        events += self.chunk(ChatChoice(index, UNSET, calls, logprobs), choices)
        if delta.finish_reason:
            end = ChatChoice(index, UNSET, ChatDelta(), None, _finish_reason(delta, called=True))
            events += self.chunk(end, choices)
        return events


def _finish_reason(delta: Delta, *, called: bool) -> str | None:
    """Return OpenAI's reason: an answer that ends by itself and has calls ended to make them."""
    return "tool_calls" if called and delta.finish_reason == "stop" else delta.finish_reason


def _streamed_call(call: ToolCallDelta) -> ReplyToolCall:
    """Return a piece of a call: its id and name come with the first one only."""
    if not call.id:
        return ReplyToolCall(index=call.index, function=ReplyFunction(call.arguments))
    function = ReplyFunction(call.arguments, call.name)
    return ReplyToolCall(index=call.index, id=call.id, type="function", function=function)


def chat_logprobs(tokenizer: Tokenizer, delta: Delta) -> ChatLogprobs:
    """Return the logprobs of the tokens of a delta."""

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
