"""What a request says about the form of its output, which becomes a grammar.

Completions and chats have the fields of `StructuredOutputFields`: OpenAI's `response_format` and
vLLM's. Other APIs name a format, and its schema: `format_constraint`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.sampling import grammar as grammars
from sarathi.sampling.grammar import Grammar, GrammarError
from sarathi.sampling.grammar_compiler import check_grammar
from sarathi.server.request_body import MAX_OPEN_FIELD, SharedFields, unsupported
from sarathi.server.responses import invalid, missing

Schema = dict[str, Any] | bool
Text = Annotated[str, Meta(max_length=MAX_OPEN_FIELD)]
Choices = Annotated[list[Text], Meta(min_length=1)]


class JsonSchemaFormat(Struct):
    """The schema of a response format."""

    name: str | None = None  # no effect
    description: str | None = None  # no effect
    schema: Schema | None = None  # any JSON object, if it is absent
    strict: bool | None = None  # otherwise what is not supported of the schema is ignored


class ResponseFormat(Struct):
    """OpenAI's field `response_format`."""

    type: Literal["text", "json_object", "json_schema"] | None = None
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(Struct):
    """vLLM's field `structured_outputs`: one of the first five."""

    json: Schema | Text | None = None
    regex: Text | None = None
    choice: Choices | None = None
    grammar: Text | None = None
    json_object: bool | None = None
    structural_tag: Any = None
    whitespace_pattern: Any = None
    disable_additional_properties: bool | None = None


class StructuredOutputFields(SharedFields, kw_only=True):
    """The fields of a request; those of vLLM up to 0.11 begin with `guided_`."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | Text | None = None
    guided_regex: Text | None = None
    guided_choice: Choices | None = None
    guided_grammar: Text | None = None


@dataclass(frozen=True)
class Constraint:
    """A grammar that a request asks for."""

    field: str  # of the request, for errors
    make: Callable[[], Grammar]

    def grammar(self, tokenizer: Tokenizer) -> Grammar:
        """Return the grammar; raise `ApiError` naming the field if it is invalid or too complex.

        Not for an event loop: even a short grammar may take a tenth of a second.
        """
        try:
            grammar = self.make()
            if len(grammar.lark.encode("utf-8", "replace")) > MAX_OPEN_FIELD:
                raise GrammarError(f"it is longer than {MAX_OPEN_FIELD // 2**10} KiB")
            check_grammar(grammar, tokenizer)
        except GrammarError as error:
            raise invalid(f"{self.field} cannot be followed: {error}.", self.field) from None
        return grammar


def format_constraint(
    field: str, kind: str, schema: Schema | None, *, lenient: bool = False
) -> Constraint | None:
    """Return what a format of the text asks for; None for plain text, which follows no grammar.

    Args:
        field: that holds the format, for errors.
        kind: `text`, `json_object` or `json_schema`; raises `ApiError` for any other.
        schema: of `json_schema`.
        lenient: ignore what of a schema cannot be enforced.
    """
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint(field, grammars.json_object)
    if kind == "json_schema":
        if schema is None:
            raise missing(f"{field}.schema")
        return Constraint(f"{field}.schema", partial(grammars.json_schema, schema, lenient=lenient))
    raise invalid(
        f"{field}.type is {kind!r:.50}, expected text, json_object or json_schema.",
        f"{field}.type",
    )


def requested_constraint(request: StructuredOutputFields) -> Constraint | None:
    """Return what the fields ask for; None for any text. Raise `ApiError` for two at a time."""
    found = [*_of_format(request.response_format), *_of_vllm(request)]
    if len(found) > 1:
        first, second = found[0].field, found[1].field
        raise invalid(f"{first} and {second} both constrain the output; give one.", second)
    return found[0] if found else None


def _of_format(wanted: ResponseFormat | None) -> Iterator[Constraint]:
    if wanted is None:
        return
    if wanted.type == "json_object":
        yield Constraint("response_format", grammars.json_object)
    elif wanted.type == "json_schema":
        field, given = "response_format.json_schema", wanted.json_schema
        if given is None:
            raise missing(field)
        if given.schema is None:
            yield Constraint(field, grammars.json_object)
        else:
            make = partial(grammars.json_schema, given.schema, lenient=not given.strict)
            yield Constraint(f"{field}.schema", make)


def _of_vllm(request: StructuredOutputFields) -> Iterator[Constraint]:
    group = request.structured_outputs or StructuredOutputs()
    for name in ("structural_tag", "whitespace_pattern", "disable_additional_properties"):
        if getattr(group, name) not in (None, False):
            raise unsupported(f"structured_outputs.{name}")
    if group.json_object:
        yield Constraint("structured_outputs.json_object", grammars.json_object)
    for prefix, source in (("structured_outputs.", group), ("guided_", request)):
        for name, make in _CONSTRAINTS.items():
            value = getattr(source, name if source is group else prefix + name)
            if value is not None:
                yield Constraint(prefix + name, partial(make, value))


def _schema_or_text(schema: Schema | str) -> Grammar:
    if not isinstance(schema, str):
        return grammars.json_schema(schema)
    try:
        decoded: Schema = msgspec.json.decode(schema, type=Schema)
    except (msgspec.DecodeError, RecursionError) as error:
        raise GrammarError(f"it is not a JSON schema: {error}") from None
    return grammars.json_schema(decoded)


_CONSTRAINTS: Mapping[str, Callable[[Any], Grammar]] = {
    "json": _schema_or_text,
    "regex": grammars.regex,
    "choice": grammars.choice,
    "grammar": grammars.lark,
}
