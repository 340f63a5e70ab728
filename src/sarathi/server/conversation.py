"""A conversation in the form that all chat APIs are translated to, and its prompt.

An API makes a `Conversation` of its request. `encode_conversation` renders it with the model's
chat template and says how the output is to be parsed and what grammar it has to follow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sarathi.models.tokenizers.chat_template import ChatTemplate, WorkLimit
from sarathi.models.tokenizers.template_abilities import TemplateAbilities
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.sampling.grammar import Grammar, GrammarError
from sarathi.sampling.grammar_compiler import check_grammar
from sarathi.server.output_grammar import (
    ReasoningState,
    after_reasoning,
    either,
    forced_calls,
    strict_calls,
)
from sarathi.server.parsers.format_detection import OutputFormats
from sarathi.server.parsers.output_parser import OutputParser, ParserFactory
from sarathi.server.parsers.reasoning_parser import ReasoningFormat, ReasoningParser
from sarathi.server.prompt_messages import (
    Tool,
    Turn,
    merged_messages,
    template_messages,
    template_tool,
)
from sarathi.server.responses import invalid
from sarathi.server.service import RequestContext, Service
from sarathi.server.structured_output import Constraint

_TOOL_NAME = re.compile(r"[\w.:/\-]{1,256}")


ToolMode = Literal["auto", "none", "required"]


@dataclass(frozen=True)
class ToolChoice:
    """Whether the model has to call tools."""

    mode: ToolMode = "auto"
    name: str | None = None  # the only tool that it may call


@dataclass(frozen=True)
class Conversation:
    """What a chat API asks to continue; raises `ApiError` for a tool choice that nothing meets."""

    turns: Sequence[Turn]
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    constraint: Constraint | None = None  # of the answer's content
    reasoning_effort: str | None = None  # reaches the template if it knows the variable
    template_arguments: Mapping[str, Any] = field(default_factory=dict)  # the caller's own
    add_generation_prompt: bool = True
    add_special_tokens: bool = False  # templates write the special tokens themselves
    continues_answer: bool = False  # the output continues the last turn, which is the assistant's

    def __post_init__(self) -> None:
        choice = self.tool_choice
        if choice.mode == "required" and not self.tools:
            message = "tool_choice requires a tool call, but there are no tools."
            raise invalid(message, "tool_choice")
        if choice.name is not None and choice.name not in [tool.name for tool in self.tools]:
            raise invalid("tool_choice names a tool that is not in tools.", "tool_choice")


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
    _check_tools(conversation, service.formats)

    def work(limit: WorkLimit) -> EncodedConversation:
        abilities = service.abilities[bool(_shown_tools(conversation))]
        text = _render(template, limit, conversation, abilities, service.formats)
        state = _reasoning_state(text, service.formats.reasoning)
        if conversation.continues_answer:
            text, state = _until_answer(text, conversation.turns[-1].content), "none"
        ids = service.encode(text, conversation.add_special_tokens, limit)
        tokens = service.tokenizer.added_tokens
        grammar = _grammar(conversation, service.formats, state, service.tokenizer)
        parser = _parser(conversation, service.formats, state, tokens, abilities)
        return EncodedConversation(ids, parser, grammar)

    encoded = await service.pool.run(len(call.body), work, renders=True)
    if not encoded.prompt_ids:
        raise invalid("messages has no tokens.", "messages")
    return encoded


def _until_answer(text: str, answer: str) -> str:
    """Return a prompt up to the end of its last answer, without whitespace at that end."""
    before, found, _ = text.rpartition(answer.strip())
    if not found:
        reason = "The chat template changes the last message, so that it cannot be continued."
        raise invalid(reason, "messages")
    return before + found


def _check_tools(conversation: Conversation, formats: OutputFormats) -> None:
    for tool in conversation.tools:
        if not _TOOL_NAME.fullmatch(tool.name):
            raise invalid(
                f"The name of a tool is {tool.name!r:.100}, expected 1 to 256 letters, digits and "
                "any of _ . : / -",
                f"{tool.path}.name",
            )
    if conversation.tool_choice.mode == "required" and formats.tools is None:
        raise invalid(
            "This server does not parse tool calls (--tool-call-parser none), so that none can be "
            "required.",
            "tool_choice",
        )


def _shown_tools(conversation: Conversation) -> Sequence[Tool]:
    """Return the tools that the prompt shows."""
    return () if conversation.tool_choice.mode == "none" else conversation.tools


def _render(
    template: ChatTemplate,
    limit: WorkLimit,
    conversation: Conversation,
    abilities: TemplateAbilities,
    formats: OutputFormats,
) -> str:
    tools = _shown_tools(conversation)
    messages = template_messages(conversation.turns, tools, abilities, formats.tools)
    arguments = _template_arguments(conversation, abilities)
    shown = [template_tool(tool) for tool in tools] or None

    def rendered(messages: Sequence[Mapping[str, Any]]) -> str:
        prompt = conversation.add_generation_prompt and not conversation.continues_answer
        return template.render_within(limit, messages, prompt, shown, **arguments)

    try:
        try:
            return rendered(messages)
        except ValueError:
            merged = merged_messages(messages)
            if len(merged) == len(messages):
                raise
            return rendered(merged)
    except ValueError as error:
        raise invalid(f"The chat template refuses the messages: {error}", "messages") from None


def _template_arguments(
    conversation: Conversation, abilities: TemplateAbilities
) -> Mapping[str, Any]:
    """Return the variables for the template; the caller's own come first."""
    effort = conversation.reasoning_effort
    given: dict[str, Any] = {}
    if effort is not None and "reasoning_effort" in abilities.variables:
        given["reasoning_effort"] = effort
    if effort == "none":
        for name in ("enable_thinking", "thinking"):
            if name in abilities.variables:
                given[name] = False
    return {**given, **conversation.template_arguments}


def _reasoning_state(text: str, markers: ReasoningFormat | None) -> ReasoningState:
    """Return what the end of a prompt says about reasoning."""
    if markers is None:
        return "none"
    end = text.rstrip()
    if end.endswith(markers.begin.rstrip()):
        return "begun"
    return "none" if end.endswith(markers.end) else "possible"


def _parser(
    conversation: Conversation,
    formats: OutputFormats,
    state: ReasoningState,
    tokens: Mapping[str, int],
    abilities: TemplateAbilities,
) -> ParserFactory | None:
    tools = {tool.name: tool.parameters for tool in _shown_tools(conversation)}
    calls = None
    if formats.tools is not None and tools:
        short_ids = abilities.calls is not None and abilities.calls.short_ids
        calls = formats.tools.parser_factory(tools, tokens, short_ids=short_ids)
    markers = formats.reasoning
    if markers is None or state == "none":
        return calls
    seen = markers.token_texts & tokens.keys()
    visible = frozenset(tokens[text] for text in seen)

    def create() -> OutputParser:
        return ReasoningParser(markers, state == "begun", calls.create() if calls else None)

    return ParserFactory(create, visible | calls.visible_ids if calls else visible)


def _grammar(
    conversation: Conversation,
    formats: OutputFormats,
    state: ReasoningState,
    tokenizer: Tokenizer,
) -> Grammar | None:
    """Return the grammar of the whole output; raise `ApiError` naming a field that is wrong."""
    constraint, choice = conversation.constraint, conversation.tool_choice
    answer = grammar = None if constraint is None else constraint.grammar(tokenizer)
    tools, tokens = _shown_tools(conversation), tokenizer.added_tokens
    several = choice.name is None and conversation.parallel_tool_calls
    if tools and formats.tools is not None:
        if choice.mode == "required":
            chosen = [tool for tool in tools if choice.name in (None, tool.name)]
            grammar = forced_calls(chosen, formats.tools, tokens, several=several)
        elif answer is not None:
            grammar = either(answer, tools, formats.tools, tokens, several=several)
        elif not several or any(tool.strict for tool in tools):
            grammar = strict_calls(tools, formats.tools, tokens, several=several)
    if grammar is not None and formats.reasoning is not None:
        grammar = after_reasoning(grammar, formats.reasoning, state, tokens)
    if grammar is not None and grammar is not answer:
        try:
            check_grammar(grammar, tokenizer)
        except GrammarError as error:
            field = "tools" if constraint is None or choice.mode == "required" else constraint.field
            raise invalid(f"{field} cannot be followed: {error}.", field) from None
    return grammar
