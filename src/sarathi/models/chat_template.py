"""Chat templates: from messages to the text of a prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sarathi.models.config import ModelError


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template in the dialect of Hugging Face models.

    `tool_source` is what some models use instead of `source` when tools are offered. Raises
    `ModelError` if a template is no valid Jinja.
    """

    source: str
    bos_token: str = ""
    eos_token: str = ""
    tool_source: str | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)  # further ones, by their name

    def __post_init__(self) -> None:
        try:
            _ = self._template, self._tool_template
        except jinja2.TemplateError as error:
            raise ModelError(f"the model's chat template is invalid: {error}") from error

    @cached_property
    def _template(self) -> jinja2.Template:
        return _environment().from_string(self.source)

    @cached_property
    def _tool_template(self) -> jinja2.Template:
        return (
            self._template
            if self.tool_source is None
            else (_environment().from_string(self.tool_source))
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """The prompt for `messages`, special tokens included: encode it without adding them again.

        `extra` reaches the template as variables (`enable_thinking`, ...). Raises `ValueError`
        with the template's own message if it refuses the messages or fails on them.
        """
        named = {"bos_token": self.bos_token, "eos_token": self.eos_token, **self.special_tokens}
        variables = {
            **{name: token for name, token in named.items() if token},
            "documents": None,
            **extra,
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return (self._tool_template if tools else self._template).render(variables)
        except Exception as error:
            # A template is a program of the model's author, which may fail in any way.
            raise ValueError(f"the model's chat template refused the messages: {error}") from error


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training; here its content is rendered."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, LoopControlExtension],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters, which models were not trained on.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(date_format: str) -> str:
    return datetime.now().strftime(date_format)
