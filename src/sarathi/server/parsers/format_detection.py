"""Which formats of tool calls and reasoning a model uses, from its template and vocabulary."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.server.parsers.reasoning_parser import REASONING_FORMATS, ReasoningFormat
from sarathi.server.parsers.tool_formats import TOOL_FORMATS, ToolFormat

AUTO, NONE = "auto", "none"
TOOL_PARSERS = (AUTO, NONE, *TOOL_FORMATS)
REASONING_PARSERS = (AUTO, NONE, *REASONING_FORMATS)
DESCRIBED = "hermes"  # for models whose template knows no tools

# The first row whose texts are all in the template's source counts.
_TOOL_SIGNS = (
    (("<function=",), "qwen3_coder"),
    (("<start_function_call>",), "functiongemma"),
    (("<|tool_call>",), "gemma4"),
    (("[ARGS]",), "mistral_named"),
    (("[TOOL_CALLS]",), "mistral"),
    (("tool\u2581sep", "```json"), "deepseek_v3"),
    (("tool\u2581sep",), "deepseek_v31"),
    (("<|/tool_call|>",), "phi4_mini_json"),
    (("functools[",), "phi4_mini_json"),
    (("<|tool_call|>",), "granite"),
    (("<|python_start|>",), "pythonic"),
    (("[func_name1(",), "pythonic"),
    (("<|python_tag|>",), "llama3_json"),
    (('"parameters": dictionary',), "llama3_json"),
    (("<tool_call>[",), "smollm"),
    (("<tool_call>",), "hermes"),
    (("SmolLM",), "smollm"),
)
_REASONING_SIGNS = (
    (("<seed:think>",), "seed_oss"),
    (("<|START_THINKING|>",), "command_r"),
    (("[THINK]",), "mistral"),
    (("Here is my thought process:",), "granite"),
    (("<|channel>",), "gemma4"),
    (("</think>", "\u2581"), "deepseek_r1"),
    (("</think>",), "qwen3"),
)


@dataclass(frozen=True)
class OutputFormats:
    """The formats that a model's outputs are parsed by, and their names; None: not at all."""

    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None
    names: tuple[str, str] = (NONE, NONE)


def model_formats(tokenizer: Tokenizer, tools: str = AUTO, reasoning: str = AUTO) -> OutputFormats:
    """Return the formats that a model's template shows, or those that options name.

    `tools` is one of `TOOL_PARSERS`, and `reasoning` one of `REASONING_PARSERS`.
    """
    template = tokenizer.chat_template
    found = (NONE, NONE)
    if template is not None:
        source = template.source + (template.tool_source or "")
        found = detect_formats(source, tokenizer.added_tokens)
    names = (_chosen(tools, found[0]), _chosen(reasoning, found[1]))
    return OutputFormats(
        None if names[0] == NONE else TOOL_FORMATS[names[0]],
        None if names[1] == NONE else REASONING_FORMATS[names[1]],
        names,
    )


def _chosen(option: str, found: str) -> str:
    return found if option == AUTO else option


def detect_formats(template: str, tokens: Collection[str]) -> tuple[str, str]:
    """Return the names of the formats of tool calls and of reasoning.

    Tool calls of a model of which nothing is known are in the format that prompts then describe.
    """
    tools = _first(_TOOL_SIGNS, template) or DESCRIBED
    reasoning = _first(_REASONING_SIGNS, template)
    if reasoning is None and {"<think>", "</think>"} <= set(tokens):
        reasoning = "qwen3"
    return tools, reasoning or NONE


def _first(signs: Sequence[tuple[Sequence[str], str]], template: str) -> str | None:
    return next((name for texts, name in signs if all(one in template for one in texts)), None)
