"""A class declares options; parsing, bounds and texts follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from msgspec import Meta, Struct

from sarathi.options import (
    REQUIRED,
    Count,
    CountOrZero,
    Declaration,
    LogLevel,
    Option,
    Seconds,
    Size,
    check_options,
    declarations,
)


class Options(Struct, frozen=True, kw_only=True):
    name: Annotated[str, Option("a text", group="first")]
    count: Annotated[Count | None, Option("a number", default="as many as fit")] = None
    wait: Annotated[Seconds, Option("a time", group="second", aliases=("timeout",))] = 0.25
    memory: Annotated[Size | None, Option("a size")] = None
    share: Annotated[float, Meta(ge=0, lt=1), Option("a share")] = 0.5
    level: Annotated[
        Literal["low", "high"] | None, Option("a level", spellings={"LOW": "low", "any": None})
    ] = None
    kind: Annotated[str, Option("a row of a table", choices={"a": 1, "b": 2})] = "a"
    fast: Annotated[bool, Option("a switch")] = False
    tags: Annotated[tuple[LogLevel, ...], Option("several")] = ()
    internal: CountOrZero = 0

    def __post_init__(self) -> None:
        check_options(self, lambda name, message: ValueError(f"{name} {message}"))


def option(name: str) -> Declaration:
    return next(each for each in declarations(Options) if each.field == name)


def test_fields_without_an_option_are_no_options() -> None:
    assert [each.field for each in declarations(Options)] == [
        *("name", "count", "wait", "memory", "share", "level", "kind", "fast", "tags")
    ]


def test_a_heading_lasts_until_the_next() -> None:
    groups = {each.field: each.group for each in declarations(Options)}
    assert (groups["count"], groups["wait"], groups["tags"]) == ("first", "second", "second")


def test_names_and_defaults() -> None:
    assert option("wait").names == ("wait", "timeout")
    assert option("wait").variable == "SARATHI_WAIT"
    assert option("name").default is REQUIRED
    texts = {each.field: each.default_text for each in declarations(Options)}
    assert texts["count"] == "as many as fit"
    assert (texts["wait"], texts["share"], texts["fast"]) == ("250ms", "0.5", "off")
    assert texts["name"] is texts["memory"] is texts["tags"] is None


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("name", "x", "x"),
        ("count", "7", 7),
        ("wait", "1.5s", 1.5),
        ("memory", "2KiB", 2048),
        ("share", "0", 0.0),
        ("level", "high", "high"),
        ("level", "LOW", "low"),
        ("level", "any", None),
        ("kind", "b", "b"),
        ("fast", "Yes", True),
        ("fast", "0", False),
        ("tags", "info", "info"),
    ],
)
def test_texts_are_parsed(field: str, text: str, value: object) -> None:
    assert option(field).form.parse(text) == value


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("name", "\udcff", "not UTF-8"),
        ("count", "0", "'0' is not an integer at least 1 and at most 2147483647"),
        ("count", "1.5", "'1.5' is not an integer"),
        ("wait", "soon", "expected seconds as a number, or a text with a unit"),
        ("wait", "0", "expected a time above 0"),
        ("memory", "lots", "not a size such as"),
        ("memory", "9" * 400, "out of range"),
        ("share", "1", "'1' is not a number at least 0 and less than 1"),
        ("share", "nan", "'nan' is not a number"),
        ("level", "mid", r"invalid choice: 'mid' \(choose from 'low', 'high'\)"),
        ("kind", "c", "choose from 'a', 'b'"),
        ("fast", "maybe", "'maybe' is not true or false"),
        ("tags", "loud", "invalid choice"),
    ],
)
def test_wrong_texts_are_refused(field: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        option(field).form.parse(text)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("count", 0, "count is 0, expected an integer at least 1"),
        ("count", "7", "count is '7', expected an integer"),
        ("wait", float("inf"), "wait is inf, expected a number greater than 0"),
        ("share", 1.0, "share is 1.0, expected a number at least 0 and less than 1"),
        ("level", "mid", "level is 'mid', expected one of high, low"),
        ("kind", "c", "kind is 'c', expected one of a, b"),
        ("fast", 1, "fast is 1, expected true or false"),
        ("internal", -1, "internal is -1, expected an integer at least 0"),
    ],
)
def test_wrong_values_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**{"name": "x", field: value})  # type: ignore[arg-type]


def test_a_dataclass_declares_options_too() -> None:
    @dataclass(frozen=True)
    class Other:
        port: Annotated[int, Meta(ge=0, le=65535), Option("port to listen on")] = 8000

    [port] = declarations(Other)
    assert (port.default, port.form.parse("80")) == (8000, 80)
