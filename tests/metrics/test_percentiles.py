"""Percentiles against plain counting, and intervals against what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi.metrics import distribution

GROUPS = st.lists(st.lists(st.floats(0, 10), max_size=8), min_size=1, max_size=8)


@given(GROUPS)
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(
    groups: list[list[float]],
) -> None:
    values = sorted(value for group in groups for value in group)
    found = distribution(groups)
    assert found.count == len(values)
    if not values:
        assert (found.p50, found.mean, found.p99_interval) == (None,) * 3
        return
    for percent, value in ((50, found.p50), (90, found.p90), (99, found.p99)):
        assert value == values[math.ceil(percent * len(values) / 100) - 1]
    assert found.max == values[-1]
    assert found.mean == pytest.approx(sum(values) / len(values))


@given(GROUPS)
def test_an_interval_holds_its_percentile_unless_requests_differ_too_much(
    groups: list[list[float]],
) -> None:
    same = [group for group in groups if group][:1] * 5
    found = distribution(same)
    if same:
        assert found.p50_interval == (found.p50, found.p50)
        assert found.p99_interval == (found.p99, found.p99)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    trials, held = 200, 0
    for trial in range(trials):
        found = distribution([[value] for value in rng.exponential(size=200).tolist()], trial)
        assert found.p50_interval is not None
        low, high = found.p50_interval
        held += low <= math.log(2) <= high
    assert 0.90 <= held / trials <= 0.99


def test_gaps_of_one_request_count_as_one_observation() -> None:
    """Ten requests, each all fast or all slow: a thousand gaps make it no surer."""
    groups = [[float(slow)] * 100 for slow in (0, 0, 0, 0, 0, 1, 1, 1, 1, 1)]
    assert distribution(groups).p50_interval == (0.0, 1.0)
    apart = [[value] for group in groups for value in group]
    low, high = distribution(apart, seed=3).p50_interval or (0.0, 0.0)
    narrow = distribution([[0.0]] * 600 + [[1.0]] * 400).p50_interval
    assert (low, high) == (0.0, 1.0)  # exactly half of them are slow
    assert narrow == (0.0, 0.0)


def test_the_same_values_give_the_same_intervals() -> None:
    groups = [[value] for value in np.random.default_rng(0).random(50).tolist()]
    assert distribution(groups) == distribution(groups)
    assert distribution(groups, 1) != distribution(groups)
