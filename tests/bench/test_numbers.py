from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi.bench.report.table import (
    MISSING,
    interval,
    milliseconds,
    number,
    percent,
    plain,
    rate,
    seconds,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234.5, "1,234"),
        (123.4, "123"),
        (99.96, "100"),
        (12.34, "12.3"),
        (9.995, "9.99"),
        (9.996, "10.0"),
        (1.0, "1.00"),
        (0.1234, "0.123"),
        (0.001234, "0.00123"),
        (0.0000012, "1.2e-06"),
        (-12.34, "-12.3"),
        (math.nan, MISSING),
        (math.inf, MISSING),
        (None, MISSING),
    ],
)
def test_three_digits_count(value: float | None, text: str) -> None:
    assert number(value) == text


@given(st.floats(1e-9, 1e9))
def test_what_is_shown_is_near_what_is_meant(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=0.0051)


def test_each_unit_is_that_of_its_function() -> None:
    assert milliseconds(0.1234) == "123 ms"
    assert seconds(1.234) == "1.23 s"
    assert seconds(0.0123) == "12.3 ms"
    assert seconds(0.0) == "0 s"
    assert rate(2.50) == "2.5/s"
    assert rate(1000) == "1,000/s"
    assert percent(0.125) == "12.5 %"
    assert plain(20.0) == "20"
    assert {f(None) for f in (milliseconds, seconds, rate, percent, plain)} == {MISSING}


def test_an_interval_has_its_unit_once() -> None:
    assert interval((0.095, 0.13), milliseconds) == "95.0 to 130 ms"
    assert interval((0.095, 0.13), seconds) == "95.0 ms to 0.130 s"
    assert interval((1, 2.5), rate) == "1 to 2.5/s"
    assert interval((1, 2), number) == "1.00 to 2.00"
    assert interval(None, number) == MISSING
