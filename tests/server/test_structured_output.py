"""Fields that ask for output of a certain form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sarathi.sampling import grammar as grammars
from sarathi.sampling.grammar import Grammar
from tests.server.fake_engine import FakeEngine, chat, complete, error

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def grammar_of(**fields: Any) -> Grammar | None:
    """Return the grammar that reaches the engine, from both endpoints."""
    found = []
    for post in (chat, complete):
        engine = FakeEngine()
        reply = post(engine, **fields)
        assert reply.status_code == 200, reply.text
        found.append(engine.params.grammar)
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": None},
        {"response_format": {}},
        {"response_format": {"type": "text"}},
        {"structured_outputs": None},
        {"structured_outputs": {}},
        {"structured_outputs": {"json": None, "disable_any_whitespace": False}},
        {"guided_json": None, "guided_regex": None, "guided_choice": None, "guided_grammar": None},
    ],
)
def test_text_has_no_grammar(fields):
    assert grammar_of(**fields) is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "json_object"}}, grammars.json_object()),
        ({"structured_outputs": {"json_object": True}}, grammars.json_object()),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
                }
            },
            grammars.json_schema(SCHEMA),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            grammars.json_schema(SCHEMA, lenient=True),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            grammars.json_object(),
        ),
        ({"structured_outputs": {"json": SCHEMA}}, grammars.json_schema(SCHEMA)),
        ({"guided_json": SCHEMA}, grammars.json_schema(SCHEMA)),
        ({"guided_json": json.dumps(SCHEMA)}, grammars.json_schema(SCHEMA)),
        ({"structured_outputs": {"regex": "a+"}}, grammars.regex("a+")),
        ({"guided_regex": "a+"}, grammars.regex("a+")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, grammars.choice(["a", "b"])),
        ({"guided_choice": ["a", "b"]}, grammars.choice(["a", "b"])),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, grammars.lark('start: "a"')),
        ({"guided_grammar": 'root ::= "a"'}, grammars.lark('root ::= "a"')),
        (
            {"guided_choice": ["a"], "response_format": {"type": "text"}},
            grammars.choice(["a"]),
        ),
    ],
)
def test_the_grammar_reaches_the_engine(fields, expected):
    assert grammar_of(**fields) == expected


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "xml"),
        ({"response_format": "json"}, "response_format", "object"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "response_format.json_schema",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"not": {}}, "strict": True},
                }
            },
            "response_format.json_schema.schema",
            "not",
        ),
        ({"guided_json": "{"}, "guided_json", "not a JSON schema"),
        ({"guided_json": "[1]"}, "guided_json", "not a JSON schema"),
        ({"guided_json": {"type": "strin"}}, "guided_json", "Invalid type"),
        ({"guided_regex": "(("}, "guided_regex", "unclosed group"),
        ({"guided_regex": 5}, "guided_regex", "str"),
        ({"guided_regex": "(a{1000}){1000}"}, "guided_regex", "too many"),
        ({"guided_choice": []}, "guided_choice", "length >= 1"),
        ({"guided_choice": ["x" * 60_000, "y" * 60_000]}, "guided_choice", "64 KiB"),
        ({"guided_grammar": "hello"}, "guided_grammar", "root ::="),
        ({"guided_grammar": "start: foo"}, "guided_grammar", "unknown name"),
        ({"structured_outputs": {"regex": "(("}}, "structured_outputs.regex", "unclosed group"),
        (
            {"structured_outputs": {"structural_tag": "x"}},
            "structured_outputs.structural_tag",
            "not supported",
        ),
        (
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            "structured_outputs.choice",
            "structured_outputs.regex and structured_outputs.choice",
        ),
        (
            {"response_format": {"type": "json_object"}, "guided_regex": "a"},
            "guided_regex",
            "response_format and guided_regex",
        ),
    ],
)
def test_what_is_wrong_is_refused_by_name(fields, param, said):
    for post in (chat, complete):
        engine = FakeEngine()
        answer = error(post(engine, **fields), 400, param)
        assert said in answer["message"]
        assert not engine.generations
