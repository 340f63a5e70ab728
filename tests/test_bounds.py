from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from sarathi.bounds import bounds_of, check_bounds, field_bounds


class RefusedError(ValueError):
    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")


class Options(msgspec.Struct, kw_only=True):
    count: Annotated[int, Meta(ge=1, le=8)] = 1
    share: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.5
    any_number: float = 0.0
    limit: Annotated[int, Meta(ge=0)] | None = None
    mode: Literal["fast", "exact"] | None = None
    flag: bool = False
    words: Annotated[tuple[Annotated[str, Meta(min_length=1)], ...], Meta(max_length=2)] = ()
    weights: Annotated[
        Mapping[Annotated[int, Meta(ge=0)], Annotated[float, Meta(le=1.0)]], Meta(max_length=2)
    ] = msgspec.field(default_factory=dict)
    unchecked: float | str | None = None

    def __post_init__(self) -> None:
        check_bounds(self, RefusedError)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", 1),
        ("count", 8),
        ("share", math.nextafter(0, 1)),
        ("share", math.nextafter(1, 0)),
        ("any_number", 3),
        ("limit", None),
        ("limit", 10**400),
        ("mode", None),
        ("mode", "exact"),
        ("flag", True),
        ("words", ["a", "b"]),
        ("weights", {0: 1, 7: -5.0}),
        ("unchecked", "anything"),
    ],
)
def test_values_within_bounds_are_accepted(field: str, value: Any) -> None:
    assert getattr(Options(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("count", 0, "is 0, expected an integer at least 1 and at most 8"),
        ("count", 9, "is 9, expected an integer at least 1 and at most 8"),
        ("count", True, "is True, expected an integer at least 1 and at most 8"),
        ("count", None, "is None, expected an integer at least 1 and at most 8"),
        ("count", 1.0, "is 1.0, expected an integer at least 1 and at most 8"),
        ("share", 0, "is 0, expected a number greater than 0.0 and less than 1.0"),
        ("share", 1, "is 1, expected a number greater than 0.0 and less than 1.0"),
        ("share", math.nan, "is nan, expected a number greater than 0.0 and less than 1.0"),
        ("share", "1", "is '1', expected a number greater than 0.0 and less than 1.0"),
        ("any_number", math.inf, "is inf, expected a number"),
        ("any_number", -math.inf, "is -inf, expected a number"),
        ("any_number", False, "is False, expected a number"),
        ("limit", -1, "is -1, expected an integer at least 0"),
        ("mode", "slow", "is 'slow', expected one of exact, fast"),
        ("mode", ["fast"], "is ['fast'], expected one of exact, fast"),
        ("flag", 1, "is 1, expected true or false"),
        ("words", "ab", "is 'ab', expected a sequence, each item a non-empty string"),
        ("words", ("a", ""), "is '', expected a non-empty string"),
        ("words", ("a", "b", "c"), "has 3 entries, expected at most 2"),
        ("weights", {-1: 0.0}, "has the key -1, expected an integer at least 0"),
        ("weights", {1: 2.0}, "is 2.0, expected a number at most 1.0"),
        ("weights", {1: 0.0, 2: 0.0, 3: 0.0}, "has 3 entries, expected at most 2"),
        (
            "weights",
            [1],
            "is [1], expected a mapping from an integer at least 0 to a number at most 1.0",
        ),
    ],
)
def test_values_out_of_bounds_are_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(RefusedError) as refused:
        Options(**{field: value})
    assert str(refused.value) == f"{field} {message}"


def test_integers_too_large_to_be_floats_are_no_numbers() -> None:
    with pytest.raises(RefusedError, match="expected a number"):
        Options(any_number=10**400)


def test_the_bounds_of_one_type_can_be_asked_for() -> None:
    bounds = bounds_of(Annotated[int, Meta(ge=1)] | None)
    assert bounds is not None
    assert bounds.accepted == "an integer at least 1"
    assert bounds.admits(1)
    assert not bounds.admits(0)
    assert bounds.explain(0) == "is 0, expected an integer at least 1"


def test_types_without_bounds_are_skipped() -> None:
    assert bounds_of(dict[str, Any] | list[int]) is None
    assert "unchecked" not in field_bounds(Options)
