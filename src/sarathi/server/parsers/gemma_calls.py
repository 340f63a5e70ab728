"""Calls such as `call:f{a:<escape>text<escape>,b:[1]}`, as FunctionGemma and Gemma 4 write."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sarathi.server.parsers.call_grammar import (
    LarkRules,
    Schema,
    listed_arguments,
    resolved,
    with_definitions,
)
from sarathi.server.parsers.json_calls import read_json, write_json
from sarathi.server.parsers.text_scanner import Reading, TextScanner
from sarathi.server.parsers.tool_call_parser import CallSink, NotACallError

_NAME = re.compile(r"[^\s{}:<]*")
_KEY = re.compile(r"[^:{}\[\],]*")
_SCALAR = re.compile(r"[\w.+-]*")
_MAX_DEPTH = 64


@dataclass(frozen=True)
class GemmaCalls:
    """Objects without quotes around keys, and with a token of its own around strings."""

    quote: str

    def read(self, scanner: TextScanner, calls: CallSink, begin: str) -> Reading[None]:
        yield from scanner.skip_space()
        if not (yield from scanner.take("call:")):
            raise NotACallError
        name = yield from scanner.take_run(_NAME)
        if not name or (yield from scanner.peek()) != "{":
            raise NotACallError
        calls.begin(name)
        yield from self._read_value(scanner, calls, 0)

    def _read_value(self, scanner: TextScanner, calls: CallSink, depth: int) -> Reading[None]:
        if depth > _MAX_DEPTH:
            raise NotACallError
        yield from scanner.skip_space()
        token = yield from scanner.take(self.quote, "{", "[")
        if token == self.quote:
            scanner.drop()
            calls.add('"')
            end = yield from scanner.pass_until(
                [self.quote], lambda piece: calls.add(write_json(piece)[1:-1])
            )
            if not end:
                raise NotACallError
            calls.add('"')
        elif token:
            yield from self._read_items(scanner, calls, token, depth)
        else:
            text = yield from scanner.take_run(_SCALAR)
            try:
                read_json(text)
            except ValueError:
                raise NotACallError from None
            calls.add(text)
        scanner.drop()

    def _read_items(
        self, scanner: TextScanner, calls: CallSink, opening: str, depth: int
    ) -> Reading[None]:
        closing = "}" if opening == "{" else "]"
        calls.add(opening)
        separator = ""
        while True:
            yield from scanner.skip_space()
            if (yield from scanner.take(closing)):
                calls.add(closing)
                return
            if opening == "{":
                quoted = yield from scanner.take(self.quote)
                key = yield from scanner.take_run(_KEY)
                key = key.removesuffix(self.quote) if quoted else key
                if not (yield from scanner.take(":")):
                    raise NotACallError
                calls.add(f"{separator}{write_json(key.strip())}: ")
            else:
                calls.add(separator)
            separator = ", "
            scanner.drop()
            yield from self._read_value(scanner, calls, depth + 1)
            yield from scanner.skip_space()
            yield from scanner.take(",")

    def write_arguments(self, arguments: Mapping[str, Any]) -> str:
        """Return the text of a call's arguments."""
        return ",".join(f"{key}:{self._write(value)}" for key, value in arguments.items())

    def _write(self, value: Any) -> str:
        if isinstance(value, str):
            return f"{self.quote}{value}{self.quote}"
        if isinstance(value, Mapping):
            return "{" + self.write_arguments(value) + "}"
        if isinstance(value, list | tuple):
            return "[" + ",".join(map(self._write, value)) + "]"
        return write_json(value)

    def arguments_rule(self, rules: LarkRules, schema: Schema) -> str:
        """Return an expression for arguments that follow a schema.

        Of what is in lists and objects, and of strings, only types and choices are enforced.
        """
        return listed_arguments(
            rules,
            schema,
            ",",
            lambda key, value: f"{rules.literal(f'{key}:')} {self._value_rule(rules, value)}",
        )

    def _value_rule(self, rules: LarkRules, schema: Schema) -> str:
        if "$ref" in schema:
            key = json.dumps(schema, sort_keys=True)
            return rules.shared(key, lambda: self._value_rule(rules, resolved(schema)))
        choices = [schema["const"]] if "const" in schema else schema.get("enum")
        kind = schema.get("type")
        if choices:
            return f"({' | '.join(rules.literal(self._write(one)) for one in choices)})"
        if kind == "string":
            return f"{rules.literal(self.quote)} {rules.text_before(self.quote)}"
        if kind in ("integer", "number", "boolean", "null"):
            return rules.json(schema)
        if kind == "object" and schema.get("properties"):
            return f'"{{" {self.arguments_rule(rules, schema)} "}}"'
        if kind == "array":
            items = with_definitions(schema.get("items"), schema)
            return self._list_rule(
                rules.add(self._value_rule(rules, items)),
                schema.get("minItems") or 0,
                schema.get("maxItems"),
            )
        return rules.shared("any", lambda: self._any_value(rules))

    def _list_rule(self, item: str, least: int, most: int | None) -> str:
        if most == 0:
            return '"[]"'
        more = f'{item} ("," {item}){{{max(0, least - 1)},{"" if most is None else most - 1}}}'
        return f'"[" {more} "]"' if least else f'"[" ({more})? "]"'

    def _any_value(self, rules: LarkRules) -> str:
        text = f"{rules.literal(self.quote)} {rules.text_before(self.quote)}"
        return f"({text} | {rules.json({'type': ['number', 'boolean', 'null']})})"
