"""The grammar that an output has to follow: calls that are forced or strict, after reasoning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from sarathi.sampling.grammar import Grammar, GrammarError
from sarathi.sampling.grammar_compiler import check_syntax
from sarathi.server.parsers.call_grammar import LarkRules
from sarathi.server.parsers.reasoning_parser import ReasoningFormat
from sarathi.server.parsers.tool_formats import ToolFormat
from sarathi.server.prompt_messages import Tool
from sarathi.server.responses import ApiError, invalid

_MAX_CACHED = 16 * 2**10  # characters of a schema

# What the prompt says about reasoning: the output begins with it, may, or has none.
ReasoningState = Literal["begun", "possible", "none"]


def forced_calls(
    tools: Sequence[Tool],
    tool_format: ToolFormat,
    tokens: Mapping[str, int],
    *,
    several: bool,
    marked: bool = False,
) -> Grammar:
    """Return the grammar of calls and nothing else; raise `ApiError` for an invalid schema.

    With `marked`, calls begin with a marker even where the format needs none.
    """
    rules = LarkRules(tokens, tool_format.token_texts)
    schemas = {tool.name: _checked_schema(tool) for tool in tools}
    return Grammar(
        rules.grammar(tool_format.calls_rule(rules, schemas, several=several, marked=marked))
    )


def strict_calls(
    tools: Sequence[Tool],
    tool_format: ToolFormat,
    tokens: Mapping[str, int],
    *,
    several: bool,
) -> Grammar | None:
    """Return the grammar of any text in which calls of strict tools follow their schemas.

    With not `several`, the output ends after one call.

    None where calls have no marker that separates them from text. Raises `ApiError` for an invalid
    schema.
    """
    if tool_format.bare:
        return None
    rules = LarkRules(tokens, tool_format.token_texts)
    schemas = {
        tool.name: _checked_schema(tool) if tool.strict else {"type": "object"} for tool in tools
    }
    return Grammar(rules.grammar(tool_format.text_and_calls_rule(rules, schemas, several=several)))


def either(
    answer: Grammar,
    tools: Sequence[Tool],
    tool_format: ToolFormat,
    tokens: Mapping[str, int],
    *,
    several: bool,
) -> Grammar:
    """Return the grammar of an answer, or else calls."""
    calls = forced_calls(tools, tool_format, tokens, several=several, marked=True)
    return Grammar(f"start: answer | calls\n{_nested('answer', answer)}{_nested('calls', calls)}")


def after_reasoning(
    grammar: Grammar,
    markers: ReasoningFormat,
    state: ReasoningState,
    tokens: Mapping[str, int],
) -> Grammar:
    """Return a grammar that leaves the reasoning free."""
    if state == "none":
        return grammar
    lark = f"start: /[ \\n]{{0,4}}/ output\n{_nested('output', grammar)}"
    if state == "begun":
        return Grammar(lark, after=markers.end)
    rules = LarkRules(tokens, markers.token_texts)
    begin, end = rules.literal(markers.begin), rules.text_before(markers.end)
    return Grammar(
        rules.grammar(f"({begin} {end})? /[ \\n]{{0,4}}/ output") + _nested("output", grammar)
    )


def _nested(name: str, grammar: Grammar) -> str:
    return f"{name}: %lark {{\n{grammar.lark}\n}}\n"


def _checked_schema(tool: Tool) -> Mapping[str, Any]:
    """Return the schema of a tool's arguments; raise `ApiError` if no grammar can be made of it."""
    schema: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
    if tool.parameters:
        kinds = tool.parameters.get("type", "object")
        if kinds != "object" and not (isinstance(kinds, list) and "object" in kinds):
            # Arguments that are no object would not be read as those of a call.
            raise _unusable(tool, f"its type is {kinds!r:.100}, expected 'object'")
        # What is not supported of a schema is an error only where it has to be followed.
        schema = {**tool.parameters, "type": "object", "x-guidance": {"lenient": not tool.strict}}
    rules = LarkRules({}, ())
    lark = rules.grammar(rules.json(schema))
    # The same tools come with every turn of a conversation.
    try:
        (_check_cached if len(lark) <= _MAX_CACHED else check_syntax)(lark)
    except GrammarError as error:
        raise _unusable(tool, str(error)) from None
    return schema


_check_cached = lru_cache(512)(check_syntax)


def _unusable(tool: Tool, reason: str) -> ApiError:
    return invalid(
        f"The schema of the tool {tool.name!r:.100} cannot be used: {reason}.",
        f"{tool.path}.{tool.schema_field}",
    )
