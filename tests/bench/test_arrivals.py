"""Arrivals against the distributions that they are named after."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi.bench.workload.arrivals import ArrivalProcess, Times, process_from, stretched
from sarathi.errors import BenchmarkError

MANY = 4000
RATE = 5.0


def process(text: str) -> ArrivalProcess:
    found = process_from(text)
    assert found is not None
    return found


def gaps(text: str, seed: int = 1, count: int = MANY, rate: float = RATE) -> Times:
    times = process(text).times(count, rate, np.random.default_rng(seed))
    return np.diff(times, prepend=0.0)


def distance(values: Times, cumulative: Times) -> float:
    """The Kolmogorov-Smirnov statistic, of the cumulative distribution at the sorted values."""
    ranks = np.arange(len(values) + 1) / len(values)
    return float(max((ranks[1:] - cumulative).max(), (cumulative - ranks[:-1]).max()))


@given(
    st.sampled_from(["poisson", "constant", "gamma:0.3", "gamma:3", "gamma:10"]),
    st.integers(1, 50),
    st.floats(1e-3, 1e3),
    st.integers(0, 1000),
)
def test_the_mean_rate_is_exact(text: str, count: int, rate: float, seed: int) -> None:
    times = process(text).times(count, rate, np.random.default_rng(seed))
    assert times[-1] == count / rate
    assert len(times) == count
    assert (np.diff(times, prepend=0.0) >= -1e-12 * times[-1]).all()


@pytest.mark.parametrize("text", ["poisson", "gamma:1"])
def test_gaps_of_a_poisson_process_are_exponential(text: str) -> None:
    values = np.sort(gaps(text))
    assert distance(values, 1 - np.exp(-RATE * values)) < 1.63 / math.sqrt(MANY)
    assert distance(values, 1 - np.exp(-1.1 * RATE * values)) > 1.63 / math.sqrt(MANY)


@pytest.mark.parametrize("variation", [0.5, 2.0])
def test_gaps_of_a_gamma_process_have_its_distribution(variation: float) -> None:
    values = np.sort(gaps(f"gamma:{variation:g}"))
    assert values.std() / values.mean() == pytest.approx(variation, rel=0.1)
    shape = 1 / variation**2
    drawn = np.random.default_rng(9).gamma(shape, 1 / shape / RATE, 200_000)
    cumulative = np.searchsorted(np.sort(drawn), values) / len(drawn)
    assert distance(values, cumulative) < 1.63 / math.sqrt(MANY)


def test_constant_gaps_are_equal() -> None:
    assert gaps("constant") == pytest.approx(np.full(MANY, 1 / RATE))


def test_the_seed_decides() -> None:
    assert (gaps("poisson", seed=1) == gaps("poisson", seed=1)).all()
    assert (gaps("poisson", seed=1) != gaps("poisson", seed=2)).any()


def test_the_rate_is_only_a_scale() -> None:
    assert gaps("gamma:2", rate=3.0) == pytest.approx(2 * gaps("gamma:2", rate=6.0))


def test_no_requests_have_no_times() -> None:
    assert len(gaps("poisson", count=0)) == 0


@pytest.mark.parametrize(
    "text",
    [
        *("", "Poisson", "poisson:1", "trace:1", "constant:", "gamma", "gamma:", "gamma:x"),
        *("gamma:0", "gamma:-1", "gamma:nan", "gamma:inf", "gamma:11"),
    ],
)
def test_other_texts_are_refused_with_what_is_accepted(text: str) -> None:
    with pytest.raises(BenchmarkError, match=r"--arrivals .*(accepted are poisson|at most 10)"):
        process_from(text)


def test_a_trace_keeps_its_times_without_a_rate() -> None:
    times, seconds = stretched(np.array([2.0, 3.0, 5.0]), 0, None)
    assert (times.tolist(), seconds) == ([0.0, 1.0, 3.0], 3.0)


def test_a_trace_is_stretched_to_a_rate_after_its_warm_up() -> None:
    times, seconds = stretched(np.array([2.0, 3.0, 5.0, 7.0]), 2, 0.5)
    assert (times.tolist(), seconds) == ([0.0, 1.0, 3.0, 5.0], 4.0)


def test_a_trace_of_one_moment_has_no_rate() -> None:
    with pytest.raises(BenchmarkError, match="all arrive at once"):
        stretched(np.array([2.0, 2.0]), 0, 1.0)
