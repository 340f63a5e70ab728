"""The messages and tools of a chat request, and the conversation that they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

from sarathi.server.conversation import Conversation, Role, Tool, ToolCall, Turn
from sarathi.server.request_body import unsupported, value_or
from sarathi.server.responses import invalid, missing

# Arguments of the template that have a request field or a meaning of their own.
_RESERVED = frozenset({"messages", "add_generation_prompt", "tools", "documents"})
_UNSUPPORTED = ("audio", "function_call", "annotations")


class FunctionCall(Struct):
    """The function of a tool call; `arguments` is JSON."""

    name: str = ""
    arguments: str | dict[str, Any] | None = None


class MessageToolCall(Struct, kw_only=True):
    """A tool call of an assistant message."""

    id: str = ""
    type: str = "function"
    function: FunctionCall


class Message(Struct, forbid_unknown_fields=True, kw_only=True):
    """One message of a conversation."""

    role: Role
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # as OpenRouter and newer vLLM call it
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None


class FunctionDefinition(Struct):
    """The function of a tool; `parameters` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(Struct):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionDefinition


class ConversationRequest(Protocol):
    """The fields of a request that determine the prompt of a conversation."""

    messages: list[Message] | None
    add_generation_prompt: bool | None
    add_special_tokens: bool | None
    chat_template_kwargs: dict[str, Any] | None
    tools: list[ToolDefinition] | None


def read_conversation(request: ConversationRequest) -> Conversation:
    """Return the conversation of a request; raise `ApiError` naming a field that is wrong."""
    if request.messages is None:
        raise missing("messages")
    extra = request.chat_template_kwargs or {}
    if reserved := sorted(_RESERVED & extra.keys()):
        raise invalid(
            f"chat_template_kwargs may not have {', '.join(reserved)}.", "chat_template_kwargs"
        )
    return Conversation(
        turns=[_turn(message, f"messages[{i}]") for i, message in enumerate(request.messages)],
        tools=[_tool(definition) for definition in request.tools or ()],
        template_arguments=extra,
        add_generation_prompt=value_or(request.add_generation_prompt, True),
        add_special_tokens=value_or(request.add_special_tokens, False),
    )


def _turn(message: Message, path: str) -> Turn:
    """Return a message as a turn; the parts of a list are separated by a line break."""
    for name in _UNSUPPORTED:
        if getattr(message, name):
            raise unsupported(f"{path}.{name}")
    calls = [
        ToolCall(call.id, call.function.name, _json_text(call.function.arguments))
        for call in message.tool_calls or ()
    ]
    content = message.refusal if message.content is None else message.content
    if content is None:
        if message.role != "assistant":
            raise invalid(f"{path}.content is required.", f"{path}.content")
        content = ""
    if not isinstance(content, str):
        parts = enumerate(content)
        content = "\n".join(_part_text(part, f"{path}.content[{i}]") for i, part in parts)
    return Turn(
        role=message.role,
        content=content,
        name=message.name,
        reasoning=message.reasoning_content or message.reasoning or "",
        tool_calls=calls,
        tool_call_id=message.tool_call_id,
        path=path,
    )


def _json_text(arguments: str | dict[str, Any] | None) -> str:
    if isinstance(arguments, str):
        return arguments
    return msgspec.json.encode(arguments or {}).decode()


def _tool(definition: ToolDefinition) -> Tool:
    function = definition.function
    return Tool(
        function.name,
        function.description or "",
        function.parameters or {},
        bool(function.strict),
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
