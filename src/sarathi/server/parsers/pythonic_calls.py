"""Calls in Python's syntax, `[f(a=1), g(b="x")]`, as Llama 3.2 and 4 write."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sarathi.server.parsers.call_grammar import LarkRules, Schema, listed_arguments
from sarathi.server.parsers.json_calls import read_json, write_json
from sarathi.server.parsers.text_scanner import Reading, TextScanner
from sarathi.server.parsers.tool_call_parser import CallSink, NotACallError

_IDENTIFIER = re.compile(r"(?:[^\W\d][\w.:/\-]*)?")
_NAMES = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class PythonicCalls:
    """A list of calls with keyword arguments.

    Arguments come one by one. Without a marker, a call has to be of a known tool.
    """

    bare: str = ""

    def read(self, scanner: TextScanner, calls: CallSink, begin: str) -> Reading[None]:
        yield from scanner.skip_space()
        is_list = begin == self.bare or (yield from scanner.take("["))
        while True:
            yield from scanner.skip_space()
            if begin == self.bare:
                name = (yield from scanner.take(*(f"{one}(" for one in calls.tools)))[:-1]
            else:
                name = yield from scanner.take_run(_IDENTIFIER)
                if not (yield from scanner.take("(")):
                    raise NotACallError
            if not name:
                raise NotACallError
            yield from _read_arguments(scanner, calls, name)
            scanner.drop()
            if not is_list:
                return
            yield from scanner.skip_space()
            if (yield from scanner.take("]")):
                return
            if not (yield from scanner.take(",")):
                raise NotACallError
            scanner.drop()

    def write_arguments(self, arguments: Mapping[str, Any]) -> str:
        """Return the text of a call's arguments."""
        return ", ".join(f"{key}={value!r}" for key, value in arguments.items())

    def arguments_rule(self, rules: LarkRules, schema: Schema) -> str:
        """Return an expression for arguments that follow a schema; values are JSON."""
        return listed_arguments(
            rules,
            schema,
            ", ",
            lambda key, value: f"{rules.literal(f'{key}=')} {rules.json(value)}",
        )


def _read_arguments(scanner: TextScanner, calls: CallSink, name: str) -> Reading[None]:
    """Read from behind the opening bracket to behind the closing one."""
    separator = end = ""
    while end != ")":
        yield from scanner.skip_space()
        if (yield from scanner.take(")")):
            break
        key = yield from scanner.take_run(_IDENTIFIER)
        yield from scanner.skip_space()
        if not key or not (yield from scanner.take("=")):
            raise NotACallError
        yield from scanner.skip_space()
        value = _as_json((yield from scanner.value(quotes="\"'")))
        yield from scanner.skip_space()
        end = yield from scanner.take(",", ")")
        if not end:
            raise NotACallError
        if not separator:
            calls.begin(name)
        calls.add(f"{separator or '{'}{write_json(key)}: {value}")
        separator = ", "
        scanner.drop()
    if not separator:
        calls.begin(name)
    calls.add("}" if separator else "{}")


def _as_json(text: str | None) -> str:
    """Return a Python or JSON value as JSON."""
    if text is None:
        raise NotACallError
    with suppress(ValueError):
        read_json(text)
        return text  # as it is: numbers may be larger than Python's
    try:
        tree = ast.parse(text, mode="eval")
        value = ast.literal_eval(_WithJsonNames().visit(tree))
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise NotACallError from None


class _WithJsonNames(ast.NodeTransformer):
    """Replaces JSON's names of constants, which models mix with Python's."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(_NAMES[node.id]) if node.id in _NAMES else node
