"""The grammar of structured text, from the format that a request asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from sarathi.sampling.grammar import Grammar
from sarathi.server.responses import invalid, missing


def format_grammar(
    kind: str, schema: Mapping[str, Any] | None, path: str, *, lenient: bool = False
) -> Grammar | None:
    """Return the grammar of a format; None for plain text, which follows none.

    Args:
        kind: `text`, `json_object` or `json_schema`; raises `ApiError` for any other.
        schema: of `json_schema`.
        path: the field of the request, for errors.
        lenient: ignore what of a schema cannot be enforced.
    """
    if kind == "text":
        return None
    if kind == "json_object":
        return _json_grammar({"type": "object"}, lenient)
    if kind == "json_schema":
        if schema is None:
            raise missing(f"{path}.schema")
        return _json_grammar(schema, lenient)
    raise invalid(
        f"{path}.type is {kind!r:.50}, expected text, json_object or json_schema.", f"{path}.type"
    )


def _json_grammar(schema: Mapping[str, Any], lenient: bool) -> Grammar:
    form = {"x-guidance": {"lenient": lenient, "whitespace_flexible": False}}
    return Grammar(f"start: %json {msgspec.json.encode({**schema, **form}).decode()}")
