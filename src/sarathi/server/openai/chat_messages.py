"""The messages and tools of a chat request, and the conversation that they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Raw, Struct

from sarathi.server.conversation import Conversation
from sarathi.server.prompt_messages import Role, Tool, ToolCall, Turn, read_tool
from sarathi.server.request_body import (
    MAX_TOOLS,
    NOT_GIVEN,
    NoEffect,
    is_given,
    max_json,
    unsupported,
    unsupported_type,
    value_or,
)
from sarathi.server.responses import invalid, missing

# Arguments of the template that have a request field or a meaning of their own.
_RESERVED = frozenset({"messages", "add_generation_prompt", "tools", "documents"})
_NOTHING = (b"", b"null", b"{}", b"[]")
# By type of part, the field that has its text.
_TEXT_FIELDS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
# Parts of an assistant's message that hold its reasoning, which may be encrypted.
_REASONING_PARTS = frozenset({"thinking", "redacted_thinking", "reasoning", "reasoning_text"})


class FunctionCall(Struct):
    """The function of a tool call; `arguments` is a string of JSON, or the object itself."""

    name: str = ""
    arguments: Raw = NOT_GIVEN


class MessageToolCall(Struct, kw_only=True):
    """A tool call of an assistant message."""

    id: str = ""
    type: str = "function"
    index: NoEffect = NOT_GIVEN  # that clients keep from a stream
    function: FunctionCall


class ContentPart(Struct, kw_only=True):
    """A part of the content of a message. Which field has the text depends on the type."""

    type: str = "text"
    text: str | None = None
    refusal: str | None = None
    thinking: str | None = None
    cache_control: NoEffect = NOT_GIVEN  # prefixes are cached anyway
    annotations: NoEffect = NOT_GIVEN
    citations: NoEffect = NOT_GIVEN
    data: NoEffect = NOT_GIVEN
    signature: NoEffect = NOT_GIVEN


class Message(Struct, kw_only=True):
    """One message of a conversation."""

    role: Role | Literal["function"]
    content: str | list[str | ContentPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # as OpenRouter and newer vLLM call it
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    function_call: FunctionCall | None = None  # what OpenAI had before tool_calls
    audio: Raw = NOT_GIVEN
    images: Raw = NOT_GIVEN  # as Ollama has them

    annotations: NoEffect = NOT_GIVEN
    cache_control: NoEffect = NOT_GIVEN
    # The reasoning again, as OpenRouter, LiteLLM and others keep it for the model's provider.
    provider_specific_fields: NoEffect = NOT_GIVEN
    reasoning_details: NoEffect = NOT_GIVEN
    thinking_blocks: NoEffect = NOT_GIVEN


class FunctionDefinition(Struct):
    """The function of a tool; `parameters` is a JSON schema."""

    name: str = ""
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(Struct):
    """A tool that the model may call."""

    type: str = "function"
    function: FunctionDefinition = msgspec.field(default_factory=FunctionDefinition)
    cache_control: NoEffect = NOT_GIVEN


Tools = Annotated[list[ToolDefinition] | None, max_json(MAX_TOOLS)]


class ConversationRequest(Protocol):
    """The fields of a request that determine the prompt of a conversation."""

    messages: list[Message] | None
    add_generation_prompt: bool | None
    add_special_tokens: bool | None
    chat_template_kwargs: dict[str, Any] | None
    tools: Tools
    enable_thinking: bool | None
    thinking: Any


def read_conversation(request: ConversationRequest) -> Conversation:
    """Return the conversation of a request; raise `ApiError` naming a field that is wrong."""
    if request.messages is None:
        raise missing("messages")
    extra = {**_thinking_arguments(request), **(request.chat_template_kwargs or {})}
    if reserved := sorted(_RESERVED & extra.keys()):
        raise invalid(
            f"chat_template_kwargs may not have {', '.join(reserved)}.", "chat_template_kwargs"
        )
    return Conversation(
        turns=[_turn(message, f"messages[{i}]") for i, message in enumerate(request.messages)],
        tools=[_tool(tool, f"tools[{i}]") for i, tool in enumerate(request.tools or ())],
        template_arguments=extra,
        add_generation_prompt=value_or(request.add_generation_prompt, True),
        add_special_tokens=value_or(request.add_special_tokens, False),
    )


def _thinking_arguments(request: ConversationRequest) -> dict[str, bool]:
    """Return the arguments of the template that decide whether it reasons first."""
    arguments = {}
    thinking = request.thinking
    if isinstance(thinking, dict) and thinking.get("type") in ("enabled", "disabled"):
        thinking = thinking["type"] == "enabled"  # as Anthropic's API has it
    if isinstance(thinking, bool):
        arguments = {"thinking": thinking, "enable_thinking": thinking}
    if request.enable_thinking is not None:
        arguments["enable_thinking"] = request.enable_thinking
    return arguments


def _turn(message: Message, path: str) -> Turn:
    """Return a message as a turn; the parts of a list are separated by a line break."""
    for name in ("audio", "images"):
        if bytes(getattr(message, name)) not in _NOTHING:
            raise unsupported(f"{path}.{name}")
    calls = [
        _call(call.id, call.function, f"{path}.tool_calls[{i}].function")
        for i, call in enumerate(message.tool_calls or ())
    ]
    if message.function_call is not None:
        calls.append(_call("", message.function_call, f"{path}.function_call"))
    content = message.refusal if message.content is None else message.content
    if content is None:
        if message.role not in ("assistant", "tool", "function"):
            raise invalid(f"{path}.content is required.", f"{path}.content")
        content = ""
    reasoning = message.reasoning_content or message.reasoning or ""
    if not isinstance(content, str):
        content, thoughts = _joined(content, f"{path}.content")
        reasoning = reasoning or thoughts
    return Turn(
        role="tool" if message.role == "function" else message.role,
        content=content,
        name=message.name,
        reasoning=reasoning,
        tool_calls=calls,
        tool_call_id=message.tool_call_id,
        path=path,
    )


def _joined(parts: Sequence[str | ContentPart], path: str) -> tuple[str, str]:
    """Return the text of the parts of a message, and the reasoning among them."""
    texts, thoughts = [], []
    for index, part in enumerate(parts):
        if isinstance(part, str):
            texts.append(part)
        elif part.type in _REASONING_PARTS:
            thoughts.append(part.thinking or part.text or "")
        elif part.type in _TEXT_FIELDS:
            text = getattr(part, _TEXT_FIELDS[part.type])
            if text is None:
                raise missing(f"{path}[{index}].{_TEXT_FIELDS[part.type]}")
            texts.append(text)
        else:
            raise unsupported_type(f"{path}[{index}]", part.type, "only text is")
    return "\n".join(texts), "\n".join(filter(None, thoughts))


def _call(call_id: str, function: FunctionCall, path: str) -> ToolCall:
    """Return a call, with its arguments as JSON text."""
    arguments = "{}"
    if is_given(function.arguments):
        try:
            arguments = bytes(function.arguments).decode()
        except UnicodeDecodeError:
            raise invalid(f"{path}.arguments is not valid UTF-8.", f"{path}.arguments") from None
        if arguments.startswith('"'):
            arguments = msgspec.json.decode(arguments, type=str)
    return ToolCall(call_id, function.name, arguments)


def _tool(definition: ToolDefinition, path: str) -> Tool:
    if definition.type != "function":
        raise unsupported_type(path, definition.type, "only function is")
    function = definition.function
    return read_tool(
        f"{path}.function",
        function.name,
        function.description,
        function.parameters,
        function.strict,
    )
