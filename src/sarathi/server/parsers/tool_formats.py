"""The formats of tool calls by name, those of vLLM where it has them.

A format is a declaration: its markers, how calls are written between them, and the same again as
text, of which grammars, prompts and earlier turns are made.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sarathi.server.parsers.call_grammar import LarkRules, Schema
from sarathi.server.parsers.gemma_calls import GemmaCalls
from sarathi.server.parsers.json_calls import JsonObjects, NamedJson, NamedOrObjects
from sarathi.server.parsers.output_parser import ParserFactory
from sarathi.server.parsers.pythonic_calls import PythonicCalls
from sarathi.server.parsers.tool_call_parser import CallSyntax, ToolCallParser
from sarathi.server.parsers.xml_calls import XmlCalls

_MAX_FORCED_CALLS = 16
_ALPHANUMERIC = string.ascii_letters + string.digits


def _long_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _short_id() -> str:
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))


class WritableSyntax(CallSyntax, Protocol):
    """How calls are read and written."""

    def write_arguments(self, arguments: Mapping[str, Any]) -> str:
        """Return the text of a call's arguments."""

    def arguments_rule(self, rules: LarkRules, schema: Schema) -> str:
        """Return an expression for arguments that follow a schema."""


@dataclass(frozen=True)
class ToolFormat:
    """How a family of models writes tool calls.

    Written, calls are `opening`, each call with its name in place of NAME before and after its
    arguments, `between` them, and `closing`.
    """

    syntax: WritableSyntax
    begin: tuple[str, ...]  # markers, see `CallMarkers`
    end: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    opening: str = ""
    before_arguments: str = ""
    after_arguments: str = ""
    between: str = ""
    closing: str = ""
    inner_tokens: tuple[str, ...] = ()  # further texts that may be tokens

    @property
    def token_texts(self) -> frozenset[str]:
        """What may be a token of the model, which is then to be seen."""
        return frozenset({*self.begin, *self.end, *self.inner_tokens})

    def parser_factory(
        self, tools: Mapping[str, Schema], tokens: Mapping[str, int], *, short_ids: bool = False
    ) -> ParserFactory:
        """Return what makes parsers of calls of `tools`, which are their parameters by name.

        `tokens` are ids of tokens by text. With `short_ids`, calls get ids of nine letters and
        digits, as some templates demand.
        """
        new_id = _short_id if short_ids else _long_id
        visible = frozenset(tokens[text] for text in self.token_texts & tokens.keys())
        return ParserFactory(lambda: ToolCallParser(self, tools, new_id), visible)

    def write(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
        """Return the text of calls, which are names and arguments."""
        texts = [
            self.before_arguments.replace("NAME", name)
            + self.syntax.write_arguments(arguments)
            + self.after_arguments
            for name, arguments in calls
        ]
        return self.opening + self.between.join(texts) + self.closing

    def calls_rule(
        self,
        rules: LarkRules,
        tools: Mapping[str, Schema],
        *,
        several: bool,
        marked: bool = False,
    ) -> str:
        """Return an expression for calls of `tools`, one or up to 16 of them.

        With `marked`, they have a marker even where the format needs none.
        """
        marker = self.begin[0] if marked and self.bare else ""
        return f"{rules.literal(marker + self.opening)} {self._rest_rule(rules, tools, several)}"

    def text_and_calls_rule(
        self, rules: LarkRules, tools: Mapping[str, Schema], *, several: bool
    ) -> str:
        """Return an expression for any text, in which what follows a marker has to be calls."""
        marker = self.begin[0]
        assert self.opening.startswith(marker)
        opening = rules.literal(self.opening[len(marker) :])
        # Where each call has a marker, the next one is that of another part.
        calls = self._rest_rule(rules, tools, several and marker not in self.between)
        part = rules.add(f"{rules.text_before(marker)} {opening} {calls}")
        return f"{part}* {rules.any_text()}" if several else f"{part} | {rules.any_text()}"

    def _rest_rule(self, rules: LarkRules, tools: Mapping[str, Schema], several: bool) -> str:
        """Return an expression for calls from behind the opening on."""
        calls = [
            f"{rules.literal(self.before_arguments.replace('NAME', name))} "
            f"{self.syntax.arguments_rule(rules, schema)} {rules.literal(self.after_arguments)}"
            for name, schema in tools.items()
        ]
        call = rules.add(" | ".join(calls))
        more = f" ({rules.literal(self.between)} {call}){{0,{_MAX_FORCED_CALLS - 1}}}"
        return f"{call}{more if several else ''} {rules.literal(self.closing)}"


def _json_format(
    opening: str, closing: str, between: str = ", ", arguments_key: str = "arguments", **more: Any
) -> ToolFormat:
    """Return a format of JSON objects with name and arguments."""
    syntax = more.pop("syntax", JsonObjects())
    return ToolFormat(
        syntax,
        opening=opening,
        before_arguments=f'{{"name": "NAME", "{arguments_key}": ',
        after_arguments="}",
        between=between,
        closing=closing,
        **more,
    )


def _gemma_format(begin: str, end: str, quote: str) -> ToolFormat:
    return ToolFormat(
        GemmaCalls(quote),
        begin=(begin,),
        end=(end,),
        opening=begin,
        before_arguments="call:NAME{",
        after_arguments="}" + end,
        between=begin,
        inner_tokens=(quote,),
    )


# DeepSeek's tokens, with bars and gaps that are not ASCII.
_CALLS_BEGIN, _CALLS_END, _CALL_BEGIN, _CALL_END, _SEPARATOR = _DEEPSEEK_TOKENS = tuple(
    f"<\uff5ctool\u2581{name}\uff5c>"
    for name in (
        "calls\u2581begin",
        "calls\u2581end",
        "call\u2581begin",
        "call\u2581end",
        "sep",
    )
)
_MISTRAL = NamedOrObjects(
    JsonObjects(), NamedJson("", ("[CALL_ID]", "[ARGS]"), with_call_id="[CALL_ID]")
)

_FORMATS: Mapping[str, ToolFormat] = {
    "hermes": _json_format(
        "<tool_call>\n",
        "\n</tool_call>",
        "\n</tool_call>\n<tool_call>\n",
        begin=("<tool_call>",),
        end=("</tool_call>",),
    ),
    "smollm": _json_format(
        "<tool_call>[", "]</tool_call>", begin=("<tool_call>",), end=("</tool_call>",)
    ),
    "granite": _json_format("<|tool_call|>[", "]", begin=("<|tool_call|>", "<tool_call>")),
    "phi4_mini_json": _json_format(
        "<|tool_call|>[",
        "]<|/tool_call|>",
        begin=("<|tool_call|>", "functools"),
        end=("<|/tool_call|>",),
    ),
    "llama3_json": _json_format(
        "",
        "",
        "; ",
        "parameters",
        syntax=JsonObjects(bare="{"),
        begin=("<|python_tag|>",),
        bare=("{",),
    ),
    "mistral": _json_format(
        "[TOOL_CALLS][",
        "]",
        syntax=_MISTRAL,
        begin=("[TOOL_CALLS]",),
        inner_tokens=("[ARGS]", "[CALL_ID]"),
    ),
    # What Mistral's models write from 2025 on; either reads both.
    "mistral_named": ToolFormat(
        _MISTRAL,
        begin=("[TOOL_CALLS]",),
        opening="[TOOL_CALLS]",
        before_arguments="NAME[ARGS]",
        between="[TOOL_CALLS]",
        inner_tokens=("[ARGS]", "[CALL_ID]"),
    ),
    "pythonic": ToolFormat(
        PythonicCalls(bare="["),
        begin=("<|python_start|>", "<|python_tag|>"),
        end=("<|python_end|>",),
        bare=("[",),
        opening="[",
        before_arguments="NAME(",
        after_arguments=")",
        between=", ",
        closing="]",
    ),
    "qwen3_coder": ToolFormat(
        XmlCalls(),
        begin=("<tool_call>", "<function="),
        end=("</tool_call>",),
        opening="<tool_call>\n",
        before_arguments="<function=NAME>\n",
        after_arguments="</function>",
        between="\n</tool_call>\n<tool_call>\n",
        closing="\n</tool_call>",
    ),
    "deepseek_v3": ToolFormat(
        NamedJson(f"function{_SEPARATOR}", ("\n```json\n",)),
        begin=(_CALLS_BEGIN + _CALL_BEGIN, _CALL_BEGIN),
        end=(f"```{_CALL_END}{_CALLS_END}", f"```{_CALL_END}"),
        opening=_CALLS_BEGIN + _CALL_BEGIN,
        before_arguments=f"function{_SEPARATOR}NAME\n```json\n",
        after_arguments=f"\n```{_CALL_END}",
        between=f"\n{_CALL_BEGIN}",
        closing=_CALLS_END,
        inner_tokens=_DEEPSEEK_TOKENS,
    ),
    "deepseek_v31": ToolFormat(
        NamedJson("", (_SEPARATOR,)),
        begin=(_CALLS_BEGIN + _CALL_BEGIN, _CALL_BEGIN),
        end=(_CALL_END + _CALLS_END, _CALL_END),
        opening=_CALLS_BEGIN + _CALL_BEGIN,
        before_arguments=f"NAME{_SEPARATOR}",
        after_arguments=_CALL_END,
        between=_CALL_BEGIN,
        closing=_CALLS_END,
        inner_tokens=_DEEPSEEK_TOKENS,
    ),
    "functiongemma": _gemma_format("<start_function_call>", "<end_function_call>", "<escape>"),
    "gemma4": _gemma_format("<|tool_call>", "<tool_call|>", '<|"|>'),
}
_ALIASES = {
    "llama4_json": "llama3_json",
    "llama4_pythonic": "pythonic",
    "qwen3_xml": "qwen3_coder",
}
TOOL_FORMATS = {**_FORMATS, **{name: _FORMATS[format_] for name, format_ in _ALIASES.items()}}
