"""Calls in tags, `<function=f><parameter=p>text</parameter></function>`, as Qwen3-Coder writes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sarathi.server.parsers.call_grammar import (
    LarkRules,
    Schema,
    properties,
    resolved,
    with_definitions,
)
from sarathi.server.parsers.json_calls import read_json, write_json
from sarathi.server.parsers.text_scanner import Reading, TextScanner
from sarathi.server.parsers.tool_call_parser import CallSink, NotACallError

_TAG_NAME = re.compile(r"[^<>\n]*")
_FUNCTION, _PARAMETER, _END = "<function=", "<parameter=", "</function>"
_VALUE_ENDS = ("\n</parameter>", "</parameter>")
_TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool}
_TYPES |= {"object": dict, "array": list, "null": type(None)}


@dataclass(frozen=True)
class XmlCalls:
    """A tag for the function and one for each argument.

    What a value is, the schema says: strings are written without quotes, other values as JSON.
    """

    def read(self, scanner: TextScanner, calls: CallSink, begin: str) -> Reading[None]:
        if begin != _FUNCTION:
            yield from scanner.skip_space()
            if not (yield from scanner.take(_FUNCTION)):
                raise NotACallError
        name = yield from scanner.take_run(_TAG_NAME)
        if not name or not (yield from scanner.take(">")):
            raise NotACallError
        calls.begin(name)
        calls.add("{")
        schemas = dict(properties(calls.tools.get(name, {})))
        separator = ""
        while True:
            yield from scanner.skip_space()
            if (yield from scanner.take(_END)):
                calls.add("}")
                return
            if not (yield from scanner.take(_PARAMETER)):
                raise NotACallError
            key = yield from scanner.take_run(_TAG_NAME)
            if not (yield from scanner.take(">")):
                raise NotACallError
            yield from scanner.take("\n")
            scanner.drop()
            calls.add(f"{separator}{write_json(key)}: ")
            separator = ", "
            yield from _read_value(scanner, calls, resolved(schemas.get(key, {})))

    def write_arguments(self, arguments: Mapping[str, Any]) -> str:
        """Return the text of a call's arguments."""
        return "".join(
            f"{_PARAMETER}{key}>\n{value if isinstance(value, str) else write_json(value)}"
            f"{_VALUE_ENDS[0]}\n"
            for key, value in arguments.items()
        )

    def arguments_rule(self, rules: LarkRules, schema: Schema) -> str:
        """Return an expression for arguments that follow a schema.

        The length and the pattern of a string are not enforced.
        """
        required = schema.get("required") or ()
        parts = []
        for key, value in properties(schema):
            start, end = rules.literal(f"{_PARAMETER}{key}>\n"), f"{_VALUE_ENDS[0]}\n"
            value = resolved(value)
            types = _types(value)
            if choices := _choices(value):
                texts = [one if isinstance(one, str) else write_json(one) for one in choices]
                expression = f"({' | '.join(map(rules.literal, texts))}) {rules.literal(end)}"
            elif types is None or "string" in types:
                expression = rules.text_before(end)
            else:
                expression = f"{rules.json(value)} {rules.literal(end)}"
            part = rules.add(f"{start} {expression}")
            parts.append(part if key in required else f"{part}?")
        return " ".join(parts)


def _read_value(scanner: TextScanner, calls: CallSink, schema: Schema) -> Reading[None]:
    types = _types(schema)
    if types == {"string"}:
        calls.add('"')
        end = yield from scanner.pass_until(
            _VALUE_ENDS, lambda piece: calls.add(write_json(piece)[1:-1])
        )
        if end:
            calls.add('"')
    else:
        pieces: list[str] = []
        end = yield from scanner.pass_until(_VALUE_ENDS, pieces.append)
        calls.add(_converted("".join(pieces), types))
    if not end:  # what is cut off must not look complete
        raise NotACallError
    scanner.drop()


def _converted(text: str, types: set[str] | None) -> str:
    """Return a value as JSON; a string where it is no JSON of one of the types."""
    try:
        value = read_json(text)
    except ValueError:
        return {"True": "true", "False": "false", "None": "null"}.get(
            text.strip(), write_json(text)
        )
    allowed = types is None or any(_has_type(value, one) for one in types)
    return text.strip() if allowed else write_json(text)


def _has_type(value: Any, name: str) -> bool:
    if isinstance(value, bool) and name != "boolean":
        return False
    if isinstance(value, float) and value.is_integer() and name == "integer":
        return True
    return isinstance(value, _TYPES.get(name, object))  # type: ignore[arg-type]


def _types(schema: Schema) -> set[str] | None:
    """Return the types that a schema allows; None if that is not plain."""
    if choices := _choices(schema):
        return {name for one in choices for name in _TYPES if _has_type(one, name)}
    found = schema.get("type")
    if isinstance(found, str):
        return {found}
    if isinstance(found, list):
        return set(map(str, found))
    options = schema.get("anyOf") or schema.get("oneOf")
    if not isinstance(options, list):
        return None
    parts = [_types(resolved(with_definitions(option, schema))) for option in options]
    return None if None in parts else {one for part in parts for one in part or ()}


def _choices(schema: Schema) -> list[Any]:
    found = [schema["const"]] if "const" in schema else schema.get("enum")
    return found if isinstance(found, list) else []
