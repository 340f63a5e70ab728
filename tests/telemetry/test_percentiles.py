"""Percentiles against plain counting, and intervals against what they promise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi.telemetry import distribution

Array = npt.NDArray[np.float64]

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
    same = [group for group in groups if group][:1] * 300
    found = distribution(same)
    if same:
        assert found.p50_interval == (found.p50, found.p50)
        assert found.p99_interval == (found.p99, found.p99)


@pytest.mark.parametrize(
    ("requests", "known"),
    [(1, ""), (19, ""), (20, "50"), (29, "50"), (30, "50 90"), (299, "50 90"), (300, "50 90 99")],
)
def test_too_few_requests_bound_no_percentile(requests: int, known: str) -> None:
    found = distribution([[float(value)] for value in range(requests)])
    intervals = {"50": found.p50_interval, "90": found.p90_interval, "99": found.p99_interval}
    assert [name for name, interval in intervals.items() if interval] == known.split()


def test_many_gaps_of_few_requests_bound_none() -> None:
    gaps = np.random.default_rng(0).random(1000).tolist()
    assert distribution([gaps] * 19).p50_interval is None
    assert distribution([gaps] * 19 + [[]] * 9).p50_interval is None
    assert distribution([gaps] * 20).p99_interval is not None


def independent(rng: np.random.Generator, size: int) -> Array:
    return rng.normal(size=size)


def correlated(rng: np.random.Generator, size: int) -> Array:
    """Each the sum of what hit it and the ten before it, as delays in a queue are."""
    found: Array = np.convolve(rng.normal(size=size + 10), np.ones(11), "valid")
    return found


def coverage(sample: Callable[[np.random.Generator, int], Array], size: int) -> float:
    """How often the interval of a median holds 0."""
    rng, trials, held = np.random.default_rng(1), 200, 0
    for _ in range(trials):
        found = distribution([[value] for value in sample(rng, size).tolist()])
        assert found.p50_interval is not None
        low, high = found.p50_interval
        held += low <= 0 <= high
    return held / trials


def test_intervals_contain_the_truth_as_often_as_stated() -> None:
    assert 0.92 <= coverage(independent, 100) <= 0.98


def test_correlated_values_make_intervals_wider() -> None:
    """Requests one by one would hold it in half of the trials."""
    assert coverage(correlated, 300) >= 0.87


def test_gaps_of_one_request_count_as_one_observation() -> None:
    """Forty requests, each all fast or all slow: a thousand gaps make it no surer."""
    groups = [[0.0] * 25, [1.0] * 25] * 20
    assert distribution([*groups, [0.0]]).p50_interval == (0.0, 1.0)
    narrow = distribution([[0.0], [0.0], [0.0], [1.0], [1.0]] * 200).p50_interval
    assert narrow == (0.0, 0.0)


def test_the_same_values_give_the_same_intervals() -> None:
    groups = [[value] for value in np.random.default_rng(0).random(50).tolist()]
    assert distribution(groups) == distribution(groups)


def test_half_a_million_gaps_are_quick() -> None:
    rng = np.random.default_rng(0)
    groups = [rng.random(100).tolist() for _ in range(5000)]
    before = time.process_time()
    distribution(groups)
    assert time.process_time() - before < 2  # half a second where nothing else runs
