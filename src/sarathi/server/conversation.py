"""A conversation in the form that all chat APIs are translated to, and its prompt.

An API makes a `Conversation` of its request. `encode_conversation` renders it with the model's
chat template and says how the output is to be parsed and what grammar it has to follow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sarathi.models.tokenizers.chat_template import WorkLimit
from sarathi.sampling.grammar import Grammar
from sarathi.server.parsers.output_parser import ParserFactory
from sarathi.server.responses import invalid
from sarathi.server.service import RequestContext, Service

Role = Literal["system", "developer", "user", "assistant", "tool"]


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


@dataclass(frozen=True)
class ToolChoice:
    """Whether the model has to call tools."""

    mode: Literal["auto", "none", "required"] = "auto"
    name: str | None = None  # the only tool that it may call


@dataclass(frozen=True)
class Conversation:
    """What a chat API asks to continue."""

    turns: Sequence[Turn]
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    output_grammar: Grammar | None = None  # of the answer's content
    reasoning_effort: str | None = None  # reaches the template if it knows the variable
    template_arguments: Mapping[str, Any] = field(default_factory=dict)  # the caller's own
    add_generation_prompt: bool = True
    add_special_tokens: bool = False  # templates write the special tokens themselves
    continues_answer: bool = False  # the output continues the last turn, which is the assistant's


@dataclass(frozen=True)
class EncodedConversation:
    """A prompt, and what its outputs are like."""

    prompt_ids: list[int]
    parser: ParserFactory | None
    grammar: Grammar | None


async def encode_conversation(
    service: Service, call: RequestContext, conversation: Conversation
) -> EncodedConversation:
    """Return the prompt; raise `ApiError` for what the model's template does not allow."""
    template = service.tokenizer.chat_template
    if template is None:
        raise invalid("The model has no chat template; use /v1/completions.", "messages")
    if not conversation.turns:
        raise invalid("messages is empty.", "messages")

    def work(limit: WorkLimit) -> list[int]:
        messages = [_template_message(turn) for turn in conversation.turns]
        if not template.has_developer_role:
            for message in messages:
                if message["role"] == "developer":  # OpenAI's newer name of the same
                    message["role"] = "system"
        tools = [_template_tool(tool) for tool in conversation.tools] or None
        try:
            text = template.render_within(
                limit,
                messages,
                conversation.add_generation_prompt and not conversation.continues_answer,
                tools,
                **conversation.template_arguments,
            )
        except ValueError as error:
            raise invalid(f"The chat template refuses the messages: {error}", "messages") from None
        if conversation.continues_answer:
            text = _until_answer(text, conversation.turns[-1].content)
        return service.encode(text, conversation.add_special_tokens, limit)

    ids = await service.pool.run(len(call.body), work, renders=True)
    if not ids:
        raise invalid("messages has no tokens.", "messages")
    return EncodedConversation(ids, service.output_parser, conversation.output_grammar)


def _until_answer(text: str, answer: str) -> str:
    """Return a prompt up to the end of its last answer, without whitespace at that end."""
    before, found, _ = text.rpartition(answer.strip())
    if not found:
        reason = "The chat template changes the last message, so that it cannot be continued."
        raise invalid(reason, "messages")
    return before + found


def _template_message(turn: Turn) -> dict[str, Any]:
    """Return a turn as templates expect it: OpenAI's form, with arguments as an object."""
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.name is not None:
        message["name"] = turn.name
    if turn.tool_call_id is not None:
        message["tool_call_id"] = turn.tool_call_id
    if turn.reasoning:
        message["reasoning_content"] = turn.reasoning
    if turn.tool_calls:
        message["tool_calls"] = [
            {
                "type": "function",
                "id": call.id,
                "function": {"name": call.name, "arguments": _arguments(call, turn.path)},
            }
            for call in turn.tool_calls
        ]
    return message


def _arguments(call: ToolCall, path: str) -> Any:
    try:
        return json.loads(call.arguments or "{}")
    except ValueError:
        raise invalid(
            f"The arguments of the call of {call.name!r:.100} are not valid JSON.",
            f"{path}.tool_calls",
        ) from None


def _template_tool(tool: Tool) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters or {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": function}
