"""A conversation as messages for a chat template, whatever that template can show."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sarathi.models.tokenizers.template_abilities import CallForm, TemplateAbilities
from sarathi.server.parsers.tool_formats import ToolFormat
from sarathi.server.responses import missing

Role = Literal["system", "developer", "user", "assistant", "tool"]
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_DESCRIPTION = """\
You can call these functions. Each line describes one, with its parameters as a JSON schema:
<tools>
{tools}
</tools>

To call functions, reply with this, with the names and the arguments that you need:
{example}

The result of each call is then given in <tool_response></tool_response>. \
If no function is needed, reply as usual."""


@dataclass(frozen=True)
class ToolCall:
    """A call that the model made in an earlier turn."""

    id: str
    name: str
    arguments: str  # JSON


@dataclass(frozen=True)
class Turn:
    """One message; the chat template decides which roles make sense."""

    role: Role
    content: str
    name: str | None = None
    reasoning: str = ""  # of the assistant, before the content
    tool_calls: Sequence[ToolCall] = ()  # of the assistant, after the content
    tool_call_id: str | None = None  # of a tool's result: the call that it belongs to
    path: str = "messages"  # the field of the request, for errors


@dataclass(frozen=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)  # a JSON schema
    strict: bool = False  # whether arguments have to follow the schema
    path: str = "tools"  # the field of the request that has the name and the schema, for errors
    schema_field: str = "parameters"  # of these


def read_tool(
    path: str,
    name: str | None,
    description: str | None,
    schema: Mapping[str, Any] | None,
    strict: bool | None,
    schema_field: str = "parameters",
) -> Tool:
    """Return the tool that a request describes at `path`; raise `ApiError` if it has no name."""
    if not name:
        raise missing(f"{path}.name")
    return Tool(name, description or "", schema or {}, bool(strict), path, schema_field)


Message = dict[str, Any]


def template_messages(
    turns: Sequence[Turn],
    tools: Sequence[Tool],
    abilities: TemplateAbilities,
    tool_format: ToolFormat | None,
) -> list[Message]:
    """Return messages that a template with these abilities shows; raise `ApiError` for wrong calls.

    What it cannot show is written as text: tools into the system message, earlier calls in the
    model's format, their results as messages of the user, and system messages before the user's.
    """
    shown = [_adapted(turn, abilities, tool_format) for turn in turns]
    if tools and not abilities.tools and tool_format is not None:
        shown = _with_system(shown, _description(tools, tool_format))
    if not abilities.system:
        shown = _without_system(shown)
    return [message for turn in shown for message in _messages(turn, abilities)]


def merged_messages(messages: Sequence[Message]) -> list[Message]:
    """Return messages with those that follow one of their role joined to it.

    Some templates refuse a conversation where roles do not alternate.
    """
    merged: list[Message] = []
    for message in messages:
        last = merged[-1] if merged else {}
        if last.keys() == message.keys() == {"role", "content"} and last["role"] == message["role"]:
            merged[-1] = {**last, "content": f"{last['content']}\n\n{message['content']}"}
        else:
            merged.append(message)
    return merged


def template_tool(tool: Tool) -> dict[str, Any]:
    """Return a tool as OpenAI describes it, which is what templates expect."""
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters or {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": function}


def _adapted(turn: Turn, abilities: TemplateAbilities, tool_format: ToolFormat | None) -> Turn:
    """Return a turn without what the template does not show."""
    if turn.role == "developer" and "developer" not in abilities.names:
        return replace(turn, role="system")
    if turn.tool_calls and abilities.calls is None and tool_format is not None:
        calls = [(call.name, _arguments(call)) for call in turn.tool_calls]
        parts = (turn.content, tool_format.write(calls))
        return replace(turn, content="\n".join(filter(None, parts)), tool_calls=())
    if turn.role == "tool" and not (abilities.results and abilities.calls):
        text = f"<tool_response>\n{turn.content}\n</tool_response>"
        return Turn("user", text, path=turn.path)
    return turn


def _with_system(turns: Sequence[Turn], text: str) -> list[Turn]:
    """Add a text to the system message at the beginning, or such a message."""
    if turns and turns[0].role == "system":
        return [replace(turns[0], content=f"{turns[0].content}\n\n{text}"), *turns[1:]]
    return [Turn("system", text), *turns]


def _without_system(turns: Sequence[Turn]) -> list[Turn]:
    """Put the text of system messages before that of the user's message that follows."""
    kept: list[Turn] = []
    waiting: list[str] = []
    for turn in turns:
        if turn.role == "system":
            waiting.append(turn.content)
        elif turn.role == "user" and waiting:
            kept.append(replace(turn, content="\n\n".join([*waiting, turn.content])))
            waiting.clear()
        else:
            kept.append(turn)
    return [*kept, Turn("user", "\n\n".join(waiting))] if waiting else kept


def _description(tools: Sequence[Tool], tool_format: ToolFormat) -> str:
    lines = [json.dumps(template_tool(tool), ensure_ascii=False) for tool in tools]
    example = tool_format.write([("function_name", {"parameter_name": "value"})])
    return _DESCRIPTION.format(tools="\n".join(lines), example=example)


def _messages(turn: Turn, abilities: TemplateAbilities) -> list[Message]:
    """Return a turn in OpenAI's form, as the template wants it."""
    message: Message = {"role": turn.role, "content": turn.content}
    if turn.name is not None:
        message["name"] = turn.name
    form = abilities.calls
    if turn.tool_call_id is not None:
        message["tool_call_id"] = _call_id(turn.tool_call_id, form)
    if turn.reasoning:
        message |= {key: turn.reasoning for key in _REASONING_KEYS if key in abilities.names}
    if not turn.tool_calls or form is None:
        return [message]
    calls = [
        {
            "type": "function",
            "id": _call_id(call.id, form),
            "function": {
                "name": call.name,
                "arguments": call.arguments or "{}" if form.arguments_as_text else _arguments(call),
            },
        }
        for call in turn.tool_calls
    ]
    if not form.null_content:
        return [{**message, "tool_calls": calls}]
    with_calls = {**message, "content": None, "tool_calls": calls}
    return [message, with_calls] if turn.content else [with_calls]


def _call_id(given: str, form: CallForm | None) -> str:
    """Return the id of a call, shortened in a way that keeps it distinct where that is needed."""
    if form is None or not form.short_ids or (len(given) == 9 and given.isalnum()):
        return given
    return hashlib.sha256(given.encode("utf-8", "replace")).hexdigest()[:9]


def _arguments(call: ToolCall) -> dict[str, Any]:
    """Return the arguments of an earlier call; a text that is no JSON object is the only one.

    Models write such texts, or `max_tokens` cuts them, and clients send back what they got.
    """
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    return arguments if isinstance(arguments, dict) else {"arguments": call.arguments}
