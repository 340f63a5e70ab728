"""Reasoning before an answer, and tool calls after it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi.server.parsers.reasoning_parser import REASONING_FORMATS, ReasoningParser
from sarathi.server.parsers.tool_formats import TOOL_FORMATS
from tests.server.parsers.parsing import Parsed, parse, pieces

FORMATS = pytest.mark.parametrize("name", REASONING_FORMATS)
CUTS = st.lists(st.integers(0, 10**6), max_size=8)
THINK = REASONING_FORMATS["qwen3"]


@FORMATS
@pytest.mark.parametrize("begun", [False, True])
def test_every_cut_gives_the_same(name: str, begun: bool) -> None:
    markers = REASONING_FORMATS[name]
    text = f"{'' if begun else markers.begin}\nIt is < 6 [or so].\n{markers.end}\n\nIt is 5."
    whole = Parsed("It is 5.", "It is < 6 [or so].", ())
    for cut in range(len(text) + 1):
        assert parse(ReasoningParser(markers, begun), pieces(text, [cut])) == whole
    assert parse(ReasoningParser(markers, begun), list(text)) == whole


@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "think>", "\n", "a", "</"])), CUTS)
def test_any_text_is_cut_as_one_pleases(parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    for begun in (False, True):
        whole = parse(ReasoningParser(THINK, begun), [text])
        assert parse(ReasoningParser(THINK, begun), pieces(text, cuts)) == whole
        assert parse(ReasoningParser(THINK, begun), list(text)) == whole
        if not begun and not text.lstrip().startswith("<think>"):
            assert whole == Parsed(text, "", ())


def test_what_follows_is_parsed_for_calls() -> None:
    call = TOOL_FORMATS["hermes"].write([("f", {"a": 1})])
    text = f"<think>\nI could write {call}\n</think>\n\n{call}"
    for parts in ([text], list(text)):
        calls = TOOL_FORMATS["hermes"].parser_factory({"f": {}}, {}).create()
        found = parse(ReasoningParser(THINK, False, calls), parts)
        assert found == Parsed("", f"I could write {call}", (("f", '{"a": 1}'),))


def test_a_call_that_is_cut_off_comes_at_the_end() -> None:
    calls = TOOL_FORMATS["hermes"].parser_factory({"f": {}}, {}).create()
    found = parse(ReasoningParser(THINK, True, calls), ["a</think>b<tool_call>"])
    assert found == Parsed("b<tool_call>", "a", ())


def test_in_reasoning_says_where_the_next_token_belongs() -> None:
    parser = ReasoningParser(THINK, False)
    states = []
    for part in ("<think>", "hm", "</think>", "\n\n", "a"):
        states.append(parser.in_reasoning)
        parser.push(part, [1])
    assert states == [False, True, True, False, False]


def test_reasoning_comes_as_it_is_written() -> None:
    parser = ReasoningParser(THINK, True)
    assert parser.push("One ", [1]).reasoning == "One "
    assert parser.push("<two", [1]).reasoning == "<two"
    assert parser.push("<", [1]).reasoning == ""
    assert parser.flush().reasoning == "<"
