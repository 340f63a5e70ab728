"""The body of POST /v1/messages, and the conversation that it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from sarathi.server.conversation import Conversation, ToolChoice
from sarathi.server.generation_request import StopString
from sarathi.server.prompt_messages import Tool, ToolCall, Turn, read_tool
from sarathi.server.request_body import (
    MAX_TOOLS,
    NOT_GIVEN,
    Int64,
    NoEffect,
    SharedFields,
    max_json,
    only,
    unsupported_type,
)
from sarathi.server.responses import invalid, missing
from sarathi.server.structured_output import format_constraint


class ContentBlock(Struct):
    """A block of a message; which fields it has depends on its type."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None  # of a tool use
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None  # of a tool's result
    content: Any = None  # of a tool's result: text or blocks

    cache_control: NoEffect = NOT_GIVEN  # prefixes are cached in any case
    citations: NoEffect = NOT_GIVEN
    data: NoEffect = NOT_GIVEN  # of redacted thinking
    is_error: NoEffect = NOT_GIVEN
    signature: NoEffect = NOT_GIVEN
    source: NoEffect = NOT_GIVEN  # of images and documents, which are refused


class InputMessage(Struct):
    """One message."""

    role: Literal["user", "assistant", "system"]
    content: str | list[ContentBlock]


class ClientTool(Struct):
    """A tool; its type is checked when it is read, to name those that are not supported."""

    type: str | None = None
    name: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None

    cache_control: NoEffect = NOT_GIVEN
    eager_input_streaming: NoEffect = NOT_GIVEN


class ToolChoiceOption(Struct):
    """The field `tool_choice` of a request."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingOption(Struct):
    """The field `thinking` of a request."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: NoEffect = NOT_GIVEN
    display: NoEffect = NOT_GIVEN


class OutputFormat(Struct):
    """The form of the text."""

    type: str
    schema: dict[str, Any] | None = None


class OutputConfig(Struct):
    """The field `output_config` of a request."""

    format: OutputFormat | None = None
    effort: str | None = None


class RequestMetadata(Struct):
    """The field `metadata` of a request."""

    user_id: Raw = NOT_GIVEN


class MessagesRequest(SharedFields, kw_only=True):
    """Body of POST /v1/messages, and of its count_tokens, where some fields have no effect."""

    max_tokens: Int64 | None = None
    stop_sequences: Annotated[list[StopString], Meta(max_length=16)] | None = None
    top_k: Int64 | None = None
    metadata: RequestMetadata | None = None

    # They determine the prompt.
    messages: list[InputMessage] | None = None
    system: str | list[ContentBlock] | None = None
    tools: Annotated[list[ClientTool] | None, max_json(MAX_TOOLS)] = None
    tool_choice: ToolChoiceOption | None = None
    thinking: ThinkingOption | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # the old place of `output_config.format`
    mcp_servers: Annotated[Any, only([])] = None
    container: Annotated[Any, only()] = None

    cache_control: NoEffect = NOT_GIVEN
    service_tier: NoEffect = NOT_GIVEN
    speed: NoEffect = NOT_GIVEN
    inference_geo: NoEffect = NOT_GIVEN


def read_messages(request: MessagesRequest) -> Conversation:
    """Return the conversation of a request; raise `ApiError` naming a field that is wrong."""
    if request.messages is None:
        raise missing("messages")
    turns = []
    if request.system:
        turns.append(Turn("system", _text(request.system, "system"), path="system"))
    for index, message in enumerate(request.messages):
        turns += _message_turns(message, f"messages[{index}]")
    last = turns[-1] if turns else Turn("user", "")
    config = request.output_config or OutputConfig()
    form = config.format or request.output_format or OutputFormat("text")
    choice = request.tool_choice
    # As in Anthropic's API, a model that may do without thinks only if that is asked for.
    thinking = request.thinking is not None and request.thinking.type != "disabled"
    return Conversation(
        turns=turns,
        tools=[_read_tool(tool, f"tools[{i}]") for i, tool in enumerate(request.tools or ())],
        tool_choice=_read_tool_choice(choice),
        parallel_tool_calls=not (choice and choice.disable_parallel_tool_use),
        constraint=format_constraint("output_config.format", form.type, form.schema),
        reasoning_effort=config.effort,
        # A text of the assistant at the end is the beginning of the answer.
        continues_answer=last.role == "assistant" and bool(last.content.strip()),
        template_arguments={"enable_thinking": thinking, "thinking": thinking},  # its two names
    )


def _message_turns(message: InputMessage, path: str) -> list[Turn]:
    """Return a message as turns: each tool result is one, the rest of the message another."""
    if isinstance(message.content, str):
        return [Turn(message.role, message.content, path=path)]
    turns = []
    texts: list[str] = []
    reasoning = ""
    calls = []
    for index, block in enumerate(message.content):
        at = f"{path}.content[{index}]"
        if block.type == "tool_result":
            turns.append(_tool_result(block, at))
        elif block.type == "tool_use":
            calls.append(_tool_use(block, at))
        elif block.type == "thinking":
            reasoning += block.thinking or ""
        elif block.type != "redacted_thinking":  # which nobody but Anthropic can read
            texts.append(_block_text(block, at))
    if texts or calls or not turns:
        content = "\n".join(texts)
        turns.append(Turn(message.role, content, reasoning=reasoning, tool_calls=calls, path=path))
    return turns


def _tool_use(block: ContentBlock, path: str) -> ToolCall:
    if block.id is None or block.name is None:
        raise missing(f"{path}.{'id' if block.id is None else 'name'}")
    return ToolCall(block.id, block.name, msgspec.json.encode(block.input or {}).decode())


def _tool_result(block: ContentBlock, path: str) -> Turn:
    if block.tool_use_id is None:
        raise missing(f"{path}.tool_use_id")
    try:
        content = msgspec.convert(block.content, str | list[ContentBlock] | None)
    except msgspec.ValidationError:
        message = f"{path}.content is neither a text nor a list of blocks."
        raise invalid(message, f"{path}.content") from None
    text = _text(content or "", f"{path}.content")
    return Turn("tool", text, tool_call_id=block.tool_use_id, path=path)


def _text(content: str | Sequence[ContentBlock], path: str) -> str:
    """Return the text of a content; its blocks are separated by a line break."""
    if isinstance(content, str):
        return content
    return "\n".join(_block_text(block, f"{path}[{i}]") for i, block in enumerate(content))


def _block_text(block: ContentBlock, path: str) -> str:
    if block.type != "text":
        raise unsupported_type(path, block.type, "only text, tools and thinking are")
    if block.text is None:
        raise missing(f"{path}.text")
    return block.text


def _read_tool(tool: ClientTool, path: str) -> Tool:
    if tool.type not in (None, "custom"):
        raise unsupported_type(path, tool.type, "only tools with an input_schema are")
    schema, field = tool.input_schema, "input_schema"
    return read_tool(path, tool.name, tool.description, schema, tool.strict, field)


def _read_tool_choice(choice: ToolChoiceOption | None) -> ToolChoice:
    if choice is None:
        return ToolChoice()
    if choice.type == "tool":
        return ToolChoice("required", choice.name or "")
    return ToolChoice("required" if choice.type == "any" else choice.type)
