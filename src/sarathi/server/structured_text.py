"""The grammar of structured text, from the format that a request asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sarathi.sampling.grammar import Grammar, GrammarError, json_object, json_schema
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
        return json_object()
    if kind == "json_schema":
        if schema is None:
            raise missing(f"{path}.schema")
        try:
            return json_schema(schema, lenient=lenient)
        except GrammarError as error:
            raise invalid(f"{path}.schema: {error}.", f"{path}.schema") from None
    raise invalid(
        f"{path}.type is {kind!r:.50}, expected text, json_object or json_schema.", f"{path}.type"
    )
