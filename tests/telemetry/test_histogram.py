"""Histograms, counted by hand and against the definition."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi.telemetry.request_latencies import Histogram


def test_values_are_counted_under_the_least_bound_that_they_do_not_exceed() -> None:
    histogram = Histogram((0.5, 1.0, 2.0))
    for value in (0.0, 0.5, 0.75, 1.0, 1.5, 2.25, 8.0):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1, 2]
    assert histogram.cumulative() == [(0.5, 2), (1.0, 4), (2.0, 5), (math.inf, 7)]
    assert histogram.count == 7
    assert histogram.sum == 14.0


def test_before_the_first_value() -> None:
    empty = Histogram((1.0,))
    assert (empty.count, empty.sum) == (0, 0.0)
    assert empty.cumulative() == [(1.0, 0), (math.inf, 0)]


@given(
    st.lists(st.integers(-50, 50), unique=True).map(sorted),
    st.lists(st.integers(-60, 60)),
)
def test_each_bound_counts_what_does_not_exceed_it(bounds: list[int], values: list[int]) -> None:
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    assert histogram.cumulative() == [
        (bound, sum(value <= bound for value in values)) for bound in (*bounds, math.inf)
    ]


@pytest.mark.parametrize("bounds", [(2.0, 1.0), (1.0, 1.0), (1.0, math.inf), (math.nan,)])
def test_bounds_that_do_not_ascend_are_refused(bounds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ascend"):
        Histogram(bounds)
