"""The body of POST /v1/responses, and the conversation that it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, cast

from msgspec import Raw, Struct

from sarathi.server.conversation import Conversation, ToolChoice, ToolMode
from sarathi.server.prompt_messages import Role, Tool, ToolCall, Turn, read_tool
from sarathi.server.request_body import (
    MAX_TOOLS,
    NOT_GIVEN,
    Int64,
    NoEffect,
    SharedFields,
    max_json,
    only,
    unsupported_type,
    value_or,
)
from sarathi.server.responses import invalid, missing
from sarathi.server.structured_output import format_constraint

_TEXT_PARTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")
_ROLES = ("system", "developer", "user", "assistant")


class ItemPart(Struct):
    """A part of an item's content."""

    type: str
    text: str | None = None
    refusal: str | None = None

    annotations: NoEffect = NOT_GIVEN
    logprobs: NoEffect = NOT_GIVEN


class InputItem(Struct):
    """An item of the input; which fields it has depends on its type."""

    type: str | None = None
    role: str | None = None
    content: str | list[ItemPart] | None = None
    summary: list[ItemPart] | None = None  # of reasoning
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ItemPart] | None = None

    id: NoEffect = NOT_GIVEN
    status: NoEffect = NOT_GIVEN
    encrypted_content: NoEffect = NOT_GIVEN
    phase: NoEffect = NOT_GIVEN


class FunctionTool(Struct):
    """A tool; its type is checked when it is read, to name those that are not supported."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChosenFunctionTool(Struct):
    """A tool that the model has to call."""

    type: str
    name: str | None = None


class TextFormat(Struct):
    """The form of the text."""

    type: str = "text"
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class TextOptions(Struct):
    """The field `text` of a request."""

    format: TextFormat | None = None
    verbosity: str | None = None  # no effect, but part of the reply


class ReasoningOptions(Struct):
    """The field `reasoning` of a request."""

    effort: str | None = None
    summary: str | None = None  # no effect, but part of the reply: the reasoning itself is sent
    generate_summary: NoEffect = NOT_GIVEN  # the old name of `summary`


class ResponsesRequest(SharedFields, kw_only=True):
    """Body of POST /v1/responses."""

    input: str | list[InputItem] | None = None
    instructions: str | None = None
    tools: Annotated[list[FunctionTool] | None, max_json(MAX_TOOLS)] = None
    tool_choice: ToolMode | ChosenFunctionTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    max_output_tokens: Int64 | None = None
    top_logprobs: Int64 | None = None
    include: list[str] | None = None
    user: Raw = NOT_GIVEN

    # They need what the server does not have: stored responses, conversations and prompts.
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: Annotated[Any, only(False)] = None

    # No effect, but part of the reply.
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    max_tool_calls: Int64 | None = None  # of tools that a server runs

    # No effect: nothing is stored, no input is cut, no padding is sent.
    store: NoEffect = NOT_GIVEN
    truncation: NoEffect = NOT_GIVEN
    stream_options: NoEffect = NOT_GIVEN
    service_tier: NoEffect = NOT_GIVEN
    prompt_cache_options: NoEffect = NOT_GIVEN
    prompt_cache_retention: NoEffect = NOT_GIVEN

    @property
    def text_format(self) -> TextFormat:
        """The form of the text; plain text unless given."""
        given = None if self.text is None else self.text.format
        return TextFormat() if given is None else given


def read_responses_input(request: ResponsesRequest) -> Conversation:
    """Return the conversation of a request; raise `ApiError` naming a field that is wrong."""
    for name in ("previous_response_id", "conversation", "prompt"):
        if getattr(request, name) is not None:
            raise invalid(
                f"{name} is not supported, because nothing is stored here. "
                "Send the whole input with every request.",
                name,
                code="unsupported_parameter",
            )
    if request.input is None:
        raise missing("input")
    if not request.input:
        raise invalid("input is empty.", "input")
    form = request.text_format
    turns = [Turn("system", request.instructions)] if request.instructions else []
    if isinstance(request.input, str):
        turns.append(Turn("user", request.input, path="input"))
    else:
        turns += _item_turns(request.input)
    return Conversation(
        turns=turns,
        tools=[_read_tool(tool, f"tools[{i}]") for i, tool in enumerate(request.tools or ())],
        tool_choice=_read_tool_choice(request.tool_choice),
        parallel_tool_calls=value_or(request.parallel_tool_calls, True),
        constraint=format_constraint(
            "text.format", form.type, form.schema, lenient=not form.strict
        ),
        reasoning_effort=None if request.reasoning is None else request.reasoning.effort,
    )


def _item_turns(items: Sequence[InputItem]) -> list[Turn]:
    """Return items as turns: reasoning, a message and calls of the assistant are one turn of it."""
    turns: list[Turn] = []
    calls: list[ToolCall] = []  # of the assistant's last turn
    reasoning = ""  # of the assistant's next turn
    for index, item in enumerate(items):
        path = f"input[{index}]"
        kind = item.type or "message"
        if kind == "reasoning":
            reasoning += _text(item.content or item.summary or "", f"{path}.content")
            continue
        is_message = kind == "message" and item.role == "assistant"
        if is_message or kind == "function_call":
            if is_message or reasoning or not turns or turns[-1].role != "assistant":
                content = _text(item.content or "", f"{path}.content") if is_message else ""
                calls = []
                turns.append(Turn("assistant", content, None, reasoning, calls, path=path))
            if not is_message:
                calls.append(_read_call(item, path))
        else:
            turns.append(_other_turn(item, kind, path))
        reasoning = ""
    return turns


def _read_call(item: InputItem, path: str) -> ToolCall:
    if item.call_id is None or item.name is None:
        raise missing(f"{path}.{'call_id' if item.call_id is None else 'name'}")
    return ToolCall(item.call_id, item.name, item.arguments or "")


def _other_turn(item: InputItem, kind: str, path: str) -> Turn:
    """Return an item that is not of the assistant as a turn."""
    if kind == "message":
        if item.role not in _ROLES:
            raise invalid(
                f"{path}.role is {item.role!r:.50}, expected one of {', '.join(_ROLES)}.",
                f"{path}.role",
            )
        if item.content is None:
            raise missing(f"{path}.content")
        content = _text(item.content, f"{path}.content")
        return Turn(cast("Role", item.role), content, path=path)
    if kind == "function_call_output":
        if item.call_id is None:
            raise missing(f"{path}.call_id")
        if item.output is None:
            raise missing(f"{path}.output")
        output = _text(item.output, f"{path}.output")
        return Turn("tool", output, tool_call_id=item.call_id, path=path)
    reason = "only messages, reasoning, and calls of functions and their outputs are"
    if kind == "item_reference":
        reason = "nothing is stored here; send the item itself"
    raise unsupported_type(path, kind, reason)


def _text(content: str | Sequence[ItemPart], path: str) -> str:
    """Return the text of a content; its parts are separated by a line break."""
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        at = f"{path}[{index}]"
        if part.type not in (*_TEXT_PARTS, "refusal"):
            raise unsupported_type(at, part.type, "only text is")
        text = part.refusal if part.type == "refusal" else part.text
        if text is None:
            raise missing(f"{at}.{'refusal' if part.type == 'refusal' else 'text'}")
        texts.append(text)
    return "\n".join(texts)


def _read_tool(tool: FunctionTool, path: str) -> Tool:
    if tool.type != "function":
        reason = "the server runs no tools itself; only function is"
        raise unsupported_type(path, tool.type, reason)
    return read_tool(path, tool.name, tool.description, tool.parameters, tool.strict)


def _read_tool_choice(choice: ToolMode | ChosenFunctionTool | None) -> ToolChoice:
    if not isinstance(choice, ChosenFunctionTool):
        return ToolChoice(value_or(choice, "auto"))
    if choice.type != "function":
        raise unsupported_type("tool_choice", choice.type, "only function is")
    return ToolChoice("required", choice.name or "")
