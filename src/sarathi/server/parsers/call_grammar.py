"""Rules in llguidance's dialect of Lark, of which grammars of tool calls are made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sarathi.sampling.grammar import JSON_FORM

Schema = Mapping[str, Any]  # a JSON schema

_DEFINITIONS = ("$defs", "definitions")
_MAX_REFERENCES = 16  # to references


class LarkRules:
    """Collects rules and writes expressions for them."""

    def __init__(self, tokens: Mapping[str, int], texts: Iterable[str]) -> None:
        """Those of `texts` that `tokens` has the ids of are generated as these tokens.

        llguidance takes most tokens that were added to a vocabulary for other than their letters.
        """
        self._tokens = {text: tokens[text] for text in texts if text in tokens}
        self._lines: list[str] = []
        self._shared: dict[str, str] = {}

    def add(self, expression: str, options: str = "") -> str:
        """Add a rule and return its name."""
        name = f"r{len(self._lines)}"
        self._lines.append(f"{name}{options}: {expression}")
        return name

    def shared(self, key: str, expression: Callable[[], str]) -> str:
        """Return the name of the rule of this key, which is made once and may refer to itself."""
        if key not in self._shared:
            index = len(self._lines)
            self._shared[key] = self.add("")
            self._lines[index] += expression()
        return self._shared[key]

    def literal(self, text: str) -> str:
        """Return the expression of a text, with tokens where it has them."""
        parts = []
        while text:
            at, token = min(
                ((at, one) for one in self._tokens if (at := text.find(one)) >= 0),
                key=lambda found: (found[0], -len(found[1])),
                default=(len(text), ""),
            )
            if at:
                parts.append(json.dumps(text[:at], ensure_ascii=False))
            if token:
                parts.append(f"<[{self._tokens[token]}]>")
            text = text[at + len(token) :]
        return " ".join(parts) or '""'

    def json(self, schema: Schema) -> str:
        """Return the expression of JSON that follows a schema."""
        form = {**JSON_FORM, **schema.get("x-guidance", {})}
        return self.add(f"%json {json.dumps({**schema, 'x-guidance': form})}")

    def text_before(self, marker: str) -> str:
        """Return the expression of any text up to and with its first `marker`."""
        if any(map(marker.startswith, self._tokens)):
            return f"{self.any_text()} {self.literal(marker)}"
        return self.add(f"/(?s:.*)/ {self.literal(marker)}", "[lazy]")

    def any_text(self) -> str:
        """Return the expression of any text without special tokens."""
        return "/(?s:.*)/"

    def grammar(self, start: str) -> str:
        """Return the grammar that begins with the expression `start`."""
        return "\n".join([f"start: {start}", *self._lines, ""])


def listed_arguments(
    rules: LarkRules, schema: Schema, separator: str, rule: Callable[[str, Schema], str]
) -> str:
    """Return an expression for the properties of a schema, in their order, with separators.

    `rule` returns that of one property. Required ones have to be there.
    """
    required = schema.get("required") or ()
    first = following = '""'  # what the rest may be: with nothing before it, or something
    for key, value in reversed(properties(schema)):
        own = rules.add(rule(key, value))
        also = f"{rules.literal(separator)} {own}"
        with_own = f"{own} {following}"
        first = rules.add(with_own if key in required else f"{with_own} | {first}")
        following = rules.add(f"{also if key in required else f'({also})?'} {following}")
    return first


def properties(schema: Schema) -> list[tuple[str, Schema]]:
    """Return the properties of a schema, each with the definitions that it may refer to."""
    found = schema.get("properties")
    items = found.items() if isinstance(found, Mapping) else ()
    return [(str(key), with_definitions(value, schema)) for key, value in items]


def with_definitions(value: Any, schema: Schema) -> Schema:
    """Return a part of a schema with the definitions of the whole, and how it is to be read."""
    if not isinstance(value, Mapping):
        return {}
    return {**value, **{key: schema[key] for key in (*_DEFINITIONS, "x-guidance") if key in schema}}


def resolved(schema: Schema) -> Schema:
    """Return what a schema refers to; itself if it is no reference to its definitions."""
    for _ in range(_MAX_REFERENCES):
        keys = str(schema.get("$ref", "")).split("/")
        if len(keys) != 3 or keys[0] != "#" or keys[1] not in _DEFINITIONS:
            return schema
        definitions = schema.get(keys[1])
        target = definitions.get(keys[2]) if isinstance(definitions, Mapping) else None
        schema = with_definitions(target, schema)
    return {}
