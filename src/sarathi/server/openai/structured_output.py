"""The fields that ask for output of a certain form: OpenAI's `response_format` and vLLM's.

All mean a `Grammar`. Requests that have the fields inherit `StructuredOutputFields`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.sampling import grammar as grammars
from sarathi.sampling.grammar import Grammar, GrammarError
from sarathi.sampling.grammar_compiler import check_grammar
from sarathi.server.request_body import MAX_OPEN_FIELD, ModelRequest, unsupported
from sarathi.server.responses import invalid, missing
from sarathi.server.service import RequestContext, Service

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


class StructuredOutputFields(ModelRequest, kw_only=True):
    """The fields of a request; those of vLLM up to 0.11 begin with `guided_`."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | Text | None = None
    guided_regex: Text | None = None
    guided_choice: Choices | None = None
    guided_grammar: Text | None = None


class _Constraint(NamedTuple):
    field: str  # of the request
    make: Callable[[], Grammar]


async def read_output_grammar(
    service: Service, call: RequestContext, request: StructuredOutputFields
) -> Grammar | None:
    """Return the grammar that a request asks for, None for any text; it is checked on a thread.

    Raises:
        ApiError: status 400, naming the field, for a grammar that is invalid or too complex, and
            for two at a time.
    """
    constraint = _constraint(request)
    if constraint is None:
        return None
    # Even a short grammar may take long, as a template may.
    return await service.pool.run(
        len(call.body), lambda _: _checked(constraint, service.tokenizer), renders=True
    )


def _checked(constraint: _Constraint, tokenizer: Tokenizer) -> Grammar:
    try:
        grammar = constraint.make()
        if len(grammar.lark.encode("utf-8", "replace")) > MAX_OPEN_FIELD:
            raise GrammarError(f"it is longer than {MAX_OPEN_FIELD // 2**10} KiB")
        check_grammar(grammar, tokenizer)
    except GrammarError as error:
        field = constraint.field
        raise invalid(f"{field} cannot be followed: {error}.", field) from None
    return grammar


def output_grammar(request: StructuredOutputFields) -> Grammar | None:
    """Return the grammar that a request asks for, None for any text, without checking it.

    Raises:
        ApiError: status 400, naming the field, for two at a time, and for what shows at once.
    """
    constraint = _constraint(request)
    try:
        return None if constraint is None else constraint.make()
    except GrammarError as error:
        assert constraint is not None
        raise invalid(f"{constraint.field}: {error}.", constraint.field) from None


def _constraint(request: StructuredOutputFields) -> _Constraint | None:
    found = [*_of_format(request.response_format), *_of_vllm(request)]
    if len(found) > 1:
        first, second = found[0].field, found[1].field
        raise invalid(f"{first} and {second} both constrain the output; give one.", second)
    return found[0] if found else None


def _of_format(wanted: ResponseFormat | None) -> Iterator[_Constraint]:
    if wanted is None:
        return
    if wanted.type == "json_object":
        yield _Constraint("response_format", grammars.json_object)
    elif wanted.type == "json_schema":
        field = "response_format.json_schema"
        if wanted.json_schema is None:
            raise missing(field)
        schema, lenient = wanted.json_schema.schema, not wanted.json_schema.strict
        if schema is None:
            yield _Constraint(field, grammars.json_object)
        else:
            make = partial(grammars.json_schema, schema, lenient=lenient)
            yield _Constraint(f"{field}.schema", make)


def _of_vllm(request: StructuredOutputFields) -> Iterator[_Constraint]:
    group = request.structured_outputs or StructuredOutputs()
    for name in ("structural_tag", "whitespace_pattern", "disable_additional_properties"):
        if getattr(group, name) not in (None, False):
            raise unsupported(f"structured_outputs.{name}")
    if group.json_object:
        yield _Constraint("structured_outputs.json_object", grammars.json_object)
    for prefix, source in (("structured_outputs.", group), ("guided_", request)):
        for name, make in _CONSTRAINTS.items():
            value = getattr(source, name if source is group else prefix + name)
            if value is not None:
                yield _Constraint(prefix + name, partial(make, value))


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
