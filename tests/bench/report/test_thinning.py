from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi.bench.report.chart import depth, in_flight, quantiles, spread
from sarathi.telemetry import distribution
from tests.bench.report.sample_runs import record

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=3000)


@given(VALUES, st.integers(10, 200))
def test_p50_p90_and_p99_are_those_of_the_metrics(values: list[float], most: int) -> None:
    found, shares = quantiles(values, most)
    expected = distribution([[value] for value in values])
    for share, value in ((0.5, expected.p50), (0.9, expected.p90), (0.99, expected.p99)):
        # The least value whose share is at least the one that is asked for.
        reached = np.flatnonzero(shares >= share - 1e-12)
        assert found[reached[0] if len(reached) else -1] == value


@given(VALUES, st.integers(10, 200))
def test_a_curve_rises_and_has_few_points(values: list[float], most: int) -> None:
    found, shares = quantiles(values, most)
    assert 0 < len(found) <= most
    assert (np.diff(found) >= 0).all()
    assert (np.diff(shares) > 0).all()
    assert np.isfinite(depth(shares)).all()


def test_half_a_million_gaps_make_a_thousand_points() -> None:
    values = np.random.default_rng(0).exponential(size=500_000)
    found, shares = quantiles(values)
    assert 500 < len(found) <= 1000
    assert np.interp(0.99, shares, found) == pytest.approx(-np.log(0.01), rel=0.02)


def test_depth_has_a_unit_for_each_nine() -> None:
    assert depth([0, 0.9, 0.99, 0.999]) == pytest.approx([0, 1, 2, 3])


def test_requests_in_flight_are_counted_from_sending_to_the_end() -> None:
    times, counts = in_flight([record(0, [1.0], ttft=1), record(1, [3.0], ttft=1)])
    assert times.tolist() == [0, 1, 2, 5]
    assert counts.tolist() == [1, 2, 1, 0]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), min_size=1, max_size=400))
def test_thinning_keeps_the_most_requests_in_flight_and_the_end(
    requests: list[tuple[float, float]],
) -> None:
    made = [record(arrival, (), ttft=took) for arrival, took in requests]
    _, every = in_flight(made, most=10_000)
    times, counts = in_flight(made, most=20)
    assert len(times) <= max(20, 2)
    assert counts.max() == every.max()
    assert counts[-1] == 0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.integers(2, 50))
def test_a_spread_has_the_least_and_the_greatest(values: list[float], most: int) -> None:
    positions = spread(values, most)
    assert len(positions) == min(most, len(values))
    assert values[positions[0]] == min(values)
    assert values[positions[-1]] == max(values)
