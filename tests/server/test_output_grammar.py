"""What grammars of calls allow, with the tokenizer of a real model: it is read as valid calls."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import llguidance
import llguidance.numpy as masks
import numpy as np
import pytest
import tokenizers

from sarathi.models.locate import locate
from sarathi.models.model import open_tokenizer
from sarathi.sampling.grammar import Grammar
from sarathi.server.output_grammar import after_reasoning, either, forced_calls, strict_calls
from sarathi.server.parsers.reasoning_parser import REASONING_FORMATS
from sarathi.server.parsers.tool_formats import TOOL_FORMATS
from sarathi.server.prompt_messages import Tool
from sarathi.server.responses import ApiError
from tests.server.parsers.parsing import Parsed, parse

FORMATS = pytest.mark.parametrize("format_name", TOOL_FORMATS)
MARKED = [name for name, tool_format in TOOL_FORMATS.items() if not tool_format.bare]
PLACE = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Bern", 'Z"ü\n']},
        "days": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        "at": {
            "type": "object",
            "properties": {"x": {"type": "number"}, "y": {"enum": ["a", "b"]}},
            "required": ["y"],
            "additionalProperties": False,
        },
        "again": {"$ref": "#/$defs/flag"},
    },
    "required": ["city", "at"],
    "additionalProperties": False,
    "$defs": {"flag": {"type": "boolean"}},
}
TOOLS = [Tool("place", "", PLACE, strict=True), Tool("now")]


@cache
def vocabulary(special: bool | None = None) -> tuple[tokenizers.Tokenizer, Mapping[str, int]]:
    """The tokenizer of SmolLM2, with `<tool_call>` and `</think>` as added tokens or as letters."""
    inner = open_tokenizer(locate("smollm2-135m").path)._inner
    if special is not None:
        for text in ("<tool_call>", "</tool_call>", "<think>", "</think>"):
            inner.add_tokens([tokenizers.AddedToken(text, special=special, normalized=False)])
    added = inner.get_added_tokens_decoder()
    return inner, {token.content: id_ for id_, token in added.items()}


@cache
def guide(special: bool | None = None) -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(vocabulary(special)[0].to_str())


def matcher(grammar: Grammar, special: bool | None = None) -> llguidance.LLMatcher:
    made = llguidance.LLMatcher(
        guide(special), llguidance.LLMatcher.grammar_from_lark(grammar.lark)
    )
    assert not made.get_error(), grammar.lark
    return made


def samples(grammar: Grammar, count: int) -> Iterator[str]:
    """Texts of tokens chosen at random among those allowed."""
    mask = masks.allocate_token_bitmask(1, guide().vocab_size)
    inner, added = vocabulary()
    made = matcher(grammar)
    for seed in range(count):
        rng = np.random.default_rng(seed)
        made.reset()
        ids: list[int] = []
        while not made.is_stopped() and not (made.is_accepting() and rng.random() < 0.4):
            masks.fill_next_token_bitmask(made, mask)
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            token = int(rng.choice(allowed))
            if token in added.values():
                assert made.is_accepting()
                break
            assert made.consume_token(token)
            ids.append(token)
            assert len(ids) < 5000
        yield inner.decode(ids)


def accepts(grammar: Grammar, text: str, special: bool | None = None) -> bool:
    """Whether a grammar allows a whole text."""
    ids = vocabulary(special)[0].encode(text, add_special_tokens=False).ids
    made = matcher(grammar, special)
    return made.try_consume_tokens(ids) == len(ids) and made.is_accepting()


def read(format_name: str, text: str) -> Parsed:
    schemas = {tool.name: tool.parameters for tool in TOOLS}
    return parse(TOOL_FORMATS[format_name].parser_factory(schemas, {}).create(), [text])


def check(name: str, arguments: dict[str, Any]) -> None:
    """Assert that arguments are valid under the schema of their tool."""
    if name == "now":
        assert arguments == {}
        return
    assert name == "place"
    assert {"city", "at"} <= arguments.keys() <= PLACE["properties"].keys()  # type: ignore[attr-defined]
    assert arguments["city"] in ("Bern", 'Z"ü\n')
    assert arguments.get("days", 0) in range(100)
    tags = arguments.get("tags", [True])
    assert 1 <= len(tags) <= 3
    assert all(isinstance(tag, bool) for tag in tags)
    assert arguments["at"]["y"] in ("a", "b")
    assert isinstance(arguments["at"].get("x", 0), int | float)
    assert arguments["at"].keys() <= {"x", "y"}
    assert isinstance(arguments.get("again", True), bool)


@FORMATS
@pytest.mark.parametrize("several", [False, True])
def test_forced_calls_are_read_as_valid_ones(format_name: str, several: bool) -> None:
    grammar = forced_calls(TOOLS, TOOL_FORMATS[format_name], {}, several=several)
    counts = set()
    for text in samples(grammar, 12):
        found = read(format_name, text)
        assert found.content == "", text
        for name, arguments in found.calls:
            check(name, json.loads(arguments))
        counts.add(len(found.calls))
    assert counts == {1} if not several else (min(counts) == 1 and max(counts) > 1)


@FORMATS
def test_what_is_written_is_what_is_forced(format_name: str) -> None:
    tool_format = TOOL_FORMATS[format_name]
    calls: list[tuple[str, dict[str, Any]]] = [
        ("now", {}),
        ("place", {"city": "Bern", "at": {"y": "a"}}),
    ]
    grammar = forced_calls(TOOLS, tool_format, {}, several=True)
    text = tool_format.write(calls)
    if "pythonic" in format_name:  # values are JSON there
        text = text.replace("'", '"')
    assert accepts(grammar, text)
    assert not accepts(grammar, f"I think {text}")
    assert not accepts(grammar, text.replace("Bern", "Rome"))
    assert not accepts(forced_calls(TOOLS, tool_format, {}, several=False), text)


@pytest.mark.parametrize("format_name", MARKED)
def test_strict_calls_leave_text_free(format_name: str) -> None:
    tool_format = TOOL_FORMATS[format_name]
    grammar = strict_calls(TOOLS, tool_format, {}, several=True)
    one = strict_calls(TOOLS, tool_format, {}, several=False)
    assert grammar is not None
    assert one is not None
    call = tool_format.write([("place", {"city": "Bern", "at": {"y": "a"}})])
    marker = tool_format.begin[0]
    for made in (grammar, one):
        assert accepts(made, "Hello { world")
        assert accepts(made, f"I look.\n{call}")
        assert not accepts(made, f"I look.\n{call.replace('Bern', 'Rome')}")
        assert not accepts(made, f"Use {marker} to call")
    assert accepts(grammar, f"{call} and {call}\nDone.")
    assert not accepts(one, f"{call} and {call}")


def test_calls_without_a_marker_cannot_be_strict() -> None:
    assert strict_calls(TOOLS, TOOL_FORMATS["llama3_json"], {}, several=True) is None


DRAFT = "http://json-schema.org/draft-07/schema#"
ANSWER = Grammar(
    'start: %json {"type": "object", "properties": {"z": {"const": 1}}, "required": ["z"]}'
)


@FORMATS
def test_an_answer_or_calls(format_name: str) -> None:
    tool_format = TOOL_FORMATS[format_name]
    grammar = either(ANSWER, TOOLS, tool_format, {}, several=True)
    call = (tool_format.begin[0] if tool_format.bare else "") + tool_format.write([("now", {})])
    assert read(format_name, call).calls == (("now", "{}"),)
    assert accepts(grammar, '{"z": 1}')
    assert accepts(grammar, call)
    assert not accepts(grammar, "Hello")
    for state in ("begun", "possible"):
        later = after_reasoning(grammar, REASONING_FORMATS["qwen3"], state, {})  # type: ignore[arg-type]
        assert later.after == ("</think>" if state == "begun" else "")
        for text in (call, '{"z": 1}'):
            assert accepts(later, f"\n\n{text}")
            if state == "possible":
                assert accepts(later, f"<think>\nHm, {{.\n</think>\n\n{text}")
                assert not accepts(later, f"<think>\nHm, {{.\n{text}")
    assert after_reasoning(grammar, REASONING_FORMATS["qwen3"], "none", {}) == grammar


@pytest.mark.parametrize("special", [False, True])
def test_markers_that_are_tokens_are_generated_as_such(special: bool) -> None:
    inner, tokens = vocabulary(special)
    grammar = forced_calls(TOOLS, TOOL_FORMATS["hermes"], tokens, several=True)
    assert allowed(grammar, special) == [inner.token_to_id("<tool_call>")]
    text = TOOL_FORMATS["hermes"].write([("now", {})])
    assert accepts(grammar, text, special)
    later = after_reasoning(grammar, REASONING_FORMATS["qwen3"], "possible", tokens)
    assert accepts(later, f"<think>hm</think>{text}", special)
    assert inner.token_to_id("<think>") in allowed(later, special)
    strict = strict_calls(TOOLS, TOOL_FORMATS["hermes"], tokens, several=True)
    assert strict is not None
    assert accepts(strict, f"Hm. {text}\nHm.", special)
    assert not accepts(strict, "Hm. <tool_call>no", special)


def allowed(grammar: Grammar, special: bool) -> list[int]:
    mask = masks.allocate_token_bitmask(1, guide(special).vocab_size)
    masks.fill_next_token_bitmask(matcher(grammar, special), mask)
    return list(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "objekt"}, "its type is 'objekt', expected 'object'"),
        ({"type": "array"}, "its type is 'array', expected 'object'"),
        ({"type": ["string", "null"]}, "expected 'object'"),
        ({"properties": {"a": {"type": "objekt"}}}, "Invalid type: objekt"),
        ({"properties": {"a": {"pattern": "(?=a)"}}}, "look-ahead"),
        ({"properties": {"a": {"$ref": "#/nowhere"}}}, "nowhere"),
    ],
)
def test_a_schema_that_cannot_be_used(schema: dict[str, Any], reason: str) -> None:
    tools = [Tool("ok"), Tool("f", "", schema, strict=True, path="tools[1].function")]
    with pytest.raises(ApiError, match=reason) as caught:
        forced_calls(tools, TOOL_FORMATS["hermes"], {}, several=True)
    assert caught.value.status == 400
    assert caught.value.body["error"]["param"] == "tools[1].function.parameters"


@FORMATS
def test_arguments_are_an_object_even_if_the_schema_allows_more(format_name: str) -> None:
    tools = [Tool("f", "", {"type": ["object", "null"]}, strict=True)]
    grammar = forced_calls(tools, TOOL_FORMATS[format_name], {}, several=True)
    text = TOOL_FORMATS[format_name].write([("f", {})])
    assert accepts(grammar, text)
    if "{}" in text:
        assert not accepts(grammar, text.replace("{}", "null"))


def test_a_schema_that_need_not_be_followed_may_have_what_is_not_supported() -> None:
    schema: dict[str, Any] = {
        "$schema": DRAFT,
        "properties": {"a": {"type": "string", "contentEncoding": "base64"}},
    }
    schema["dependencies"] = {}
    grammar = forced_calls([Tool("f", "", schema)], TOOL_FORMATS["hermes"], {}, several=True)
    assert accepts(grammar, TOOL_FORMATS["hermes"].write([("f", {"a": "b"})]))


@FORMATS
def test_a_schema_may_refer_to_itself(format_name: str) -> None:
    tree = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "sub": {"$ref": "#/$defs/tree"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    schema = {"properties": {"root": {"$ref": "#/$defs/tree"}}, "$defs": {"tree": tree}}
    tool_format = TOOL_FORMATS[format_name]
    grammar = forced_calls([Tool("f", "", schema)], tool_format, {}, several=True)
    value = {"n": 1, "sub": {"n": 2, "sub": {"n": 3}}}
    assert accepts(grammar, tool_format.write([("f", {"root": value})]).replace("'", '"'))
    wrong = {"n": 1, "sub": {"n": 2, "sub": {"m": 3}}}
    assert not accepts(grammar, tool_format.write([("f", {"root": wrong})]).replace("'", '"'))
