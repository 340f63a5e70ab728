"""Every format of tool calls: what is written is read, however the text is cut."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sarathi.server.parsers.output_parser import OutputParser
from sarathi.server.parsers.tool_formats import TOOL_FORMATS, ToolFormat
from tests.server.parsers.parsing import Parsed, parse, pieces

TOOLS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "where": {"type": "object"},
            "among": {"type": "array"},
            "metric": {"type": "boolean"},
            "note": {"type": ["string", "null"]},
        },
    },
    "add-2": {"type": "object", "properties": {}},
}
FORMATS = pytest.mark.parametrize("format_name", TOOL_FORMATS)
# In one text: what ends values, strings and calls of all formats.
NASTY = "{}[]()\"'\\,:=<>|\n`` </tool_call> <tool_call> </think> [ARGS] é 漢 \U0001f600"


def parser(format_name: str) -> OutputParser:
    return TOOL_FORMATS[format_name].parser_factory(TOOLS, {}).create()


def markers(tool_format: ToolFormat) -> list[str]:
    return [*tool_format.begin, *tool_format.end, *tool_format.inner_tokens, "</parameter>"]


def strings(format_name: str) -> st.SearchStrategy[str]:
    """Texts that the format can write as an argument."""
    texts = st.text(max_size=12) | st.just(NASTY)
    if TOOL_FORMATS[format_name].syntax.write_arguments({"a": '"'}).count("\\"):
        return texts  # it escapes them
    if "pythonic" in format_name:
        return texts
    # Without escapes, a text cannot have what ends it.
    forbidden = markers(TOOL_FORMATS[format_name])
    return texts.map(lambda text: text.strip()).filter(
        lambda text: not any(one in text for one in forbidden) and not text.startswith("\n")
    )


def values(format_name: str) -> st.SearchStrategy[Any]:
    scalars = st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e6, 1e6)
    text = strings(format_name)
    keys = st.text(string.ascii_letters, min_size=1, max_size=4)
    return st.recursive(
        scalars | text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=6,
    )


@st.composite
def calls(draw: st.DrawFn, format_name: str) -> list[tuple[str, dict[str, Any]]]:
    made: list[tuple[str, dict[str, Any]]] = []
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.booleans()):
            made.append(("add-2", {}))
            continue
        value = values(format_name)
        keys = st.text(string.ascii_letters, min_size=1, max_size=4)
        optional = {
            "city": strings(format_name),
            "days": st.integers(-99, 99),
            "metric": st.booleans(),
            "among": st.lists(value, max_size=3),
            "where": st.dictionaries(keys, value, max_size=3),
        }
        made.append(("get_weather", draw(st.fixed_dictionaries({}, optional=optional))))
    return made


CUTS = st.lists(st.integers(0, 10**6), max_size=8)


@FORMATS
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_calls_are_read_as_they_were_written(format_name: str, data: st.DataObject) -> None:
    made = data.draw(calls(format_name))
    text = TOOL_FORMATS[format_name].write(made)
    found = parse(parser(format_name), pieces(text, data.draw(CUTS)))
    assert found.content == ""
    assert [(name, json.loads(arguments)) for name, arguments in found.calls] == made
    assert found == parse(parser(format_name), list(text))


@FORMATS
def test_every_cut_gives_the_same(format_name: str) -> None:
    city = "Bern {" if TOOL_FORMATS[format_name].inner_tokens else "Bern {</tool_call>"
    arguments = {"city": city + "é\"'", "days": -2, "where": {"a": [1, "b"]}, "metric": True}
    made = [("get_weather", arguments), ("add-2", {})]
    text = TOOL_FORMATS[format_name].write(made)
    if not TOOL_FORMATS[format_name].bare:
        text = f"Let me see. {text}"
    whole = parse(parser(format_name), [text])
    assert [(name, json.loads(arguments)) for name, arguments in whole.calls] == made
    assert whole.content == ("" if TOOL_FORMATS[format_name].bare else "Let me see. ")
    for cut in range(len(text) + 1):
        assert parse(parser(format_name), pieces(text, [cut])) == whole
        if cut % 5 == 0:  # what max_tokens cuts off, in one piece and in many
            short = text[:cut]
            assert parse(parser(format_name), list(short)) == parse(parser(format_name), [short])


@FORMATS
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_wrong_outputs_are_cut_as_they_please(format_name: str, data: st.DataObject) -> None:
    """Texts made of parts of calls: in pieces they come out as they do whole."""
    tool_format = TOOL_FORMATS[format_name]
    example = tool_format.write([("get_weather", {"city": "a b", "days": 1})])
    parts = st.sampled_from(
        [
            *markers(tool_format),
            *(
                "get_weather",
                "add-2",
                "{",
                "}",
                "[",
                "]",
                '"name": ',
                '"',
                "(",
                ")",
                ", ",
                ":",
                "\n",
            ),
            *("=", "'", "\\", " ", "<", "x", "1", '{"a": 1}', "call:", "<function="),
            tool_format.opening,
            example,
            *(example[: len(example) * part // 7] for part in range(1, 7)),
        ]
    )
    text = "".join(data.draw(st.lists(parts, max_size=8)))
    whole = parse(parser(format_name), [text])
    assert parse(parser(format_name), pieces(text, data.draw(CUTS))) == whole
    assert parse(parser(format_name), list(text)) == whole
    if not whole.calls:
        assert whole.content == text


@FORMATS
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_ordinary_text_is_not_delayed(format_name: str, text: str) -> None:
    """What is kept back is the beginning of a marker, or whitespace beside one."""
    tool_format = TOOL_FORMATS[format_name]
    starts = [*tool_format.begin, *tool_format.bare]
    # Hypothesis also draws constants of the source, and so whole markers.
    assume(not any(start in text for start in starts))
    one = parser(format_name)
    passed, seen = "", ""
    for character in text:
        seen += character
        passed += one.push(character, [1]).content
        kept = seen[len(passed) :]
        assert not kept.strip() or any(start.startswith(kept.strip()) for start in starts)
    assert passed + one.flush().content == text


@FORMATS
def test_arguments_come_as_they_are_written(format_name: str) -> None:
    made = [("get_weather", {"city": "abcdefghij" * 3, "days": 3})]
    one = parser(format_name)
    lengths = []
    for character in TOOL_FORMATS[format_name].write(made):
        found = one.push(character, [1])
        lengths += [len(call.arguments) for call in found.tool_calls]
    assert len(lengths) >= (2 if "pythonic" in format_name else 20)


@FORMATS
def test_text_before_and_after_calls_is_content(format_name: str) -> None:
    tool_format = TOOL_FORMATS[format_name]
    call = tool_format.write([("add-2", {})])
    before = "" if tool_format.bare else "One moment.\n"
    found = parse(parser(format_name), [f"{before}{call}\nDone."])
    assert found == Parsed(f"{before}\nDone.", "", (("add-2", "{}"),))


@FORMATS
def test_two_blocks_of_calls_are_two_calls(format_name: str) -> None:
    call = TOOL_FORMATS[format_name].write([("add-2", {})])
    found = parse(parser(format_name), [f" {call}\n{call}\n"])
    assert found == Parsed("", "", (("add-2", "{}"), ("add-2", "{}")))


@FORMATS
def test_a_marker_without_a_call_is_text(format_name: str) -> None:
    text = f"I write {TOOL_FORMATS[format_name].begin[0]} for calls."
    assert parse(parser(format_name), [text]) == Parsed(text, "", ())


def found(format_name: str, text: str) -> Parsed:
    whole = parse(parser(format_name), [text])
    assert parse(parser(format_name), list(text)) == whole
    return whole


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('{"name": "add-2", "arguments": {"a": 1}}', '{"a": 1}'),
        ('{"arguments": {"a": 1}, "name": "add-2"}', '{"a": 1}'),
        ('{"name": "add-2", "parameters": {"a": 1}}', '{"a": 1}'),
        ('{"id": "x", "name": "add-2", "arguments": {}, "more": [1, {}]}', "{}"),
        ('{"type": "function", "function": {"name": "add-2", "arguments": {"a": 1}}}', '{"a": 1}'),
        ('{"name": "add-2", "arguments": "{\\"a\\": 1}"}', '{"a": 1}'),
        ('{"name": "add-2", "arguments": null}', "{}"),
        ('{"name": "add-2"}', "{}"),
        ('[{"name": "add-2", "arguments": {}}]', "{}"),
        ('{"name" : "add-2","arguments":{ "a" : [ ] } }', '{ "a" : [ ] }'),
    ],
)
def test_variants_of_json_calls(text: str, arguments: str) -> None:
    whole = found("hermes", f"<tool_call>{text}</tool_call>")
    assert whole == Parsed("", "", (("add-2", arguments),))


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>[]</tool_call>",
        "<tool_call>{}</tool_call>",
        '<tool_call>{"name": 5}</tool_call>',
        '<tool_call>{"name": ""}</tool_call>',
        '<tool_call>{"name": "f", "arguments": 5}</tool_call>',
        '<tool_call>{"name": "f", "argu',
        "<tool_call>" * 3,
        "<tool_cal",
    ],
)
def test_what_is_no_call_is_text(text: str) -> None:
    assert found("hermes", text) == Parsed(text, "", ())


def test_calls_of_unknown_tools_are_calls_where_a_marker_says_so() -> None:
    text = '<tool_call>{"name": "other", "arguments": {}}</tool_call>'
    assert found("hermes", text).calls == (("other", "{}"),)


def test_a_call_that_is_cut_off_is_not_completed() -> None:
    text = '<tool_call>\n{"name": "add-2", "arguments": {"a": "b'
    assert found("hermes", text) == Parsed("", "", (("add-2", '{"a": "b'),))
    text = "<tool_call>\n<function=get_weather>\n<parameter=city>\nBer"
    assert found("qwen3_coder", text) == Parsed("", "", (("get_weather", '{"city": "Ber'),))


def test_a_call_that_becomes_wrong_stays_and_the_rest_is_text() -> None:
    text = '<tool_call>{"name": "add-2", "arguments": {"a": <b>}}</tool_call> Hm'
    whole = found("hermes", text)
    assert whole.calls == (("add-2", '{"a": '),)
    assert whole.content == "<b>}}</tool_call> Hm"


def test_a_call_after_a_false_marker_is_found() -> None:
    call = '<tool_call>{"name": "add-2"}</tool_call>'
    assert found("hermes", f"Use <tool_call> so: {call}") == Parsed(
        "Use <tool_call> so: ", "", (("add-2", "{}"),)
    )


@pytest.mark.parametrize(
    "text",
    [
        '{"city": "Bern"}',
        '{"name": "Bern", "parameters": {}}',
        '{"name": "add-2',
        '{"parameters": {}, "name": "add-2"}',
        'As JSON: {"name": "add-2", "parameters": {}}',
        "{",
        "[1, 2]",
    ],
)
def test_bare_json_is_a_call_only_of_a_known_tool_at_the_beginning(text: str) -> None:
    assert found("llama3_json", text) == Parsed(text, "", ())


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        "[other(a=1)]",
        "[add-2",
        "[add-2(x)]",
        "[add-2(a=b)]",
        "[add-2(a=1+1)]",
        "See [1].",
        f"[add-2(a={'-' * 9999}1)]",
        f"[add-2(a={'(' * 9999}1{')' * 9999})]",
    ],
)
def test_lists_are_calls_only_of_known_tools(text: str) -> None:
    assert found("pythonic", text) == Parsed(text, "", ())


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("True", True),
        ("null", None),
        ("'it''s'", None),
        ("(1, 2)", [1, 2]),
        ("{'a': None}", {"a": None}),
    ],
)
def test_literals_of_python(literal: str, value: Any) -> None:
    whole = found("pythonic", f"[add-2(a={literal})]")
    if literal == "'it''s'":  # two strings, which is no value
        assert whole.calls == ()
    else:
        [(_, arguments)] = whole.calls
        assert json.loads(arguments) == {"a": value}


def test_mistral_reads_all_of_its_versions() -> None:
    for name in ("mistral", "mistral_named"):
        for text in (
            '[TOOL_CALLS] [{"name": "add-2", "arguments": {"a": 1}}]',
            '[TOOL_CALLS]add-2[ARGS]{"a": 1}',
            '[TOOL_CALLS]add-2[CALL_ID]abcDEF123[ARGS]{"a": 1}',
            '[TOOL_CALLS]add-2{"a": 1}',
        ):
            assert found(name, text) == Parsed("", "", (("add-2", '{"a": 1}'),))


def test_arguments_in_tags_have_the_types_of_the_schema() -> None:
    def value(key: str, text: str) -> Any:
        tags = f"<function=get_weather><parameter={key}>{text}</parameter></function>"
        [(_, arguments)] = found("qwen3_coder", tags).calls
        return json.loads(arguments)[key]

    assert value("city", "5") == "5"
    assert value("city", "\n a\nb \n") == " a\nb "
    assert value("days", "5") == 5
    assert value("days", "five") == "five"
    assert value("note", "null") is None
    assert value("note", "5") == "5"
    assert value("metric", "True") is True
    assert value("unknown", "[1]") == [1]


def test_ids_are_what_templates_demand() -> None:
    text = TOOL_FORMATS["hermes"].write([("add-2", {})] * 20)
    for short_ids in (False, True):
        factory = TOOL_FORMATS["hermes"].parser_factory(TOOLS, {}, short_ids=short_ids)
        ids = {call.id for call in factory.create().push(text, [1]).tool_calls}
        assert len(ids) == 20
        assert all(len(one) == 9 if short_ids else one.startswith("call_") for one in ids)


def test_special_tokens_that_are_markers_are_visible() -> None:
    factory = TOOL_FORMATS["mistral"].parser_factory(TOOLS, {"[TOOL_CALLS]": 9, "</s>": 2})
    assert factory.visible_ids == {9}


@FORMATS
def test_the_order_of_text_and_calls_is_kept(format_name: str) -> None:
    call = TOOL_FORMATS[format_name].write([("add-2", {})])
    text = f"{call} a {call if not TOOL_FORMATS[format_name].bare else ''} b"
    parsed = parser(format_name).push(text, [1])
    order = [(one.content.strip(), [call.index for call in one.tool_calls]) for one in parsed.parts]
    if TOOL_FORMATS[format_name].bare:
        assert order == [("", [0]), ("a  b", [])]
    else:
        assert order == [("", [0]), ("a", [1]), ("b", [])]
