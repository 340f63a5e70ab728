from __future__ import annotations

import json
import re
from collections.abc import Callable

import llguidance
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sarathi.models.locate import locate
from sarathi.models.model import open_tokenizer
from sarathi.models.tokenizers.grammar_tokenizer import whole_vocabulary
from sarathi.models.tokenizers.tokenizer import Tokenizer
from sarathi.sampling.grammar import (
    Grammar,
    GrammarError,
    choice,
    json_object,
    json_schema,
    lark,
    regex,
)
from sarathi.sampling.grammar_compiler import check_grammar, compile_grammar


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return open_tokenizer(locate("smollm2-135m").path)


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> llguidance.LLTokenizer:
    return whole_vocabulary(tokenizer, tokenizer.vocab_size + 40)


@pytest.fixture(scope="module")
def follows(tokenizer: Tokenizer, vocabulary: llguidance.LLTokenizer) -> Callable[..., bool]:
    def check(grammar: Grammar, text: str) -> bool:
        matcher = compile_grammar(grammar, vocabulary)
        ids = tokenizer.encode(text)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    return check


def test_json_has_one_form_of_white_space(follows):
    grammar = json_schema({"type": "object", "additionalProperties": {"type": "integer"}})
    assert follows(grammar, '{"a": 1, "b": 2}')
    assert not follows(grammar, '{"a":1,"b":2}')
    assert not follows(grammar, '{ "a": 1}')
    assert follows(json_object(), '{"a": {"b": [1, null, "x"]}}')
    assert not follows(json_object(), "[1]")


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (json_schema({"const": "<|im_end|>"}), '"<|im_end|>"'),
        (json_schema({"const": "\U0001f600<|im_start|>"}), '"\U0001f600<|im_start|>"'),
        (choice(["a<|im_end|>b"]), "a<|im_end|>b"),
        (regex(r"<\|im_end\|>!"), "<|im_end|>!"),
        (lark('start: "<|endoftext|>" "."'), "<|endoftext|>."),
        (Grammar(choice(["<|im_end|>"]).lark, after="</think>"), "</think><|im_end|>"),
    ],
)
def test_the_text_of_a_special_token_is_written_with_others(vocabulary, grammar, text):
    matcher = compile_grammar(grammar, vocabulary)
    written = b""
    while written != text.encode():
        mask = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        following = [
            token
            for token in np.flatnonzero(mask).tolist()
            if not vocabulary.is_special_token(token)
            and text.encode().startswith(written + vocabulary.decode_bytes([token]))
        ]
        assert following, written
        matcher.consume_token(following[0])
        written += vocabulary.decode_bytes(following[:1])
    assert matcher.is_accepting()


def test_objects_may_have_more_keys_unless_the_schema_forbids_it(follows):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert follows(json_schema(schema), '{"a": 1, "b": 2}')
    assert not follows(json_schema({**schema, "additionalProperties": False}), '{"a": 1, "b": 2}')


def test_keywords_that_are_not_supported(follows, tokenizer):
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    with pytest.raises(GrammarError, match="uniqueItems"):
        check_grammar(json_schema(schema), tokenizer)
    assert follows(json_schema(schema, lenient=True), "[1, 1]")


def test_a_regular_expression_is_for_the_whole_text(follows):
    for pattern in (r"\d{2}/[a-c]+", r"^\d{2}/[a-c]+$"):
        assert follows(regex(pattern), "12/abc")
        assert not follows(regex(pattern), "12/abcd")
        assert not follows(regex(pattern), "x12/abc")
    assert follows(regex(r"a\$"), "a$")
    assert follows(regex(r"a\\$"), "a\\")


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.text(max_size=8), min_size=1, max_size=4), data=st.data())
def test_a_choice_is_of_these_texts_and_no_others(follows, tokenizer, values, data):
    # The vocabulary lacks some bytes.
    assume(all(tokenizer.decode(tokenizer.encode(text)) == text for text in values))
    grammar = choice(values)
    assert follows(grammar, data.draw(st.sampled_from(values)))
    other = data.draw(
        st.text(max_size=8).filter(lambda text: tokenizer.decode(tokenizer.encode(text)) == text)
    )
    assert follows(grammar, other) == (other in values)


def test_grammars_of_lark_and_gbnf(follows):
    for text in ('start: "a" rest\nrest: /[0-9]+/', 'root ::= "a" rest\nrest ::= [0-9]+'):
        assert follows(lark(text), "a12")
        assert not follows(lark(text), "a")


@pytest.mark.parametrize("text", ["", "hello", "root ::= (", "root ::= " + "(" * 5000])
def test_text_that_is_no_grammar(text):
    with pytest.raises(GrammarError):
        lark(text)


def test_gbnf_with_too_many_rules_is_refused():
    with pytest.raises(GrammarError, match="too many rules"):
        lark("\n".join(f'r{i} ::= "a" r{i + 1}' for i in range(3000)))


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (lambda: json_schema({"type": "strin"}), "Invalid type"),
        (lambda: json_schema({"type": "string", "format": "nope"}), "Unknown format"),
        (lambda: json_schema(False), "Unsatisfiable"),
        (lambda: json_schema({"a": float("nan")}), "not JSON"),
        (lambda: regex("(("), "unclosed group"),
        (lambda: regex("(?=a)b"), "look-around"),
        (lambda: regex("\ud800"), "Unicode"),
        (lambda: regex("(a{1000}){1000}"), "too many expressions"),
        (lambda: choice([]), "nothing to choose"),
        (lambda: choice(["x" * 600_000]), "longer than 512 KiB"),
        (lambda: lark("start: foo"), "unknown name"),
        (lambda: lark("start: <|nothing|>"), "unknown special token"),
        (lambda: lark("start: A\nA: /a/ & /b/"), "no output can follow it"),
        (lambda: lark("start: e\ne: e e e\n"), "no output can"),
        (lambda: Grammar('start: "\ud800"'), "not JSON"),
    ],
)
def test_grammars_that_cannot_be_followed(grammar, reason, tokenizer):
    with pytest.raises(GrammarError, match=re.escape(reason)) as caught:
        check_grammar(grammar(), tokenizer)
    assert str(caught.value).strip()
    assert len(str(caught.value)) <= 503


@pytest.mark.parametrize(
    "grammar",
    [json_object(), choice(["yes", "no"]), regex("a+"), lark("start: <|im_start|> /a/")],
)
def test_the_check_accepts_what_can_be_followed(grammar, tokenizer):
    check_grammar(grammar, tokenizer)


def test_a_schema_that_needs_endless_output_is_refused(tokenizer):
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}, "required": ["next"]}
    with pytest.raises(GrammarError):
        check_grammar(json_schema({"$defs": {"n": node}, "$ref": "#/$defs/n"}), tokenizer)


@pytest.mark.parametrize("marker", ["</think>", "<|im_start|>", '\n"end"\\'])
def test_before_the_marker_everything_is_allowed(follows, marker):
    grammar = Grammar('start: number ","\nnumber: /[0-9]+/\n', after=marker)
    assert follows(grammar, f"12, <thin </think so</thi{marker}12,")
    assert follows(grammar, f"{marker}12,")
    assert not follows(grammar, f"well{marker}x")
    assert not follows(grammar, "12,")


def test_the_grammar_after_a_marker_may_be_of_any_kind(follows):
    schema = {"type": "object", "properties": {"a": {"const": "}\n"}}, "required": ["a"]}
    for grammar, text in (
        (json_schema(schema), json.dumps({"a": "}\n"})),
        (choice(["yes", "no"]), "no"),
        (lark('root ::= "a" think\nthink ::= [0-9]+'), "a12"),
    ):
        assert follows(Grammar(grammar.lark, after="</think>"), f"hm\n</think>{text}")
