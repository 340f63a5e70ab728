"""Lengths against the distributions that they are named after."""

from __future__ import annotations

import numpy as np
import pytest

from sarathi.bench.workload.lengths import MAX_LENGTH, Tokens, parse_lengths
from sarathi.errors import BenchmarkError

MANY = 20_000


def sampled(text: str, seed: int = 1) -> Tokens:
    return parse_lengths(text, "--prompt-lengths")(MANY, np.random.default_rng(seed))


@pytest.mark.parametrize("text", ["7", "fixed:7"])
def test_fixed_lengths_are_all_the_same(text: str) -> None:
    assert set(sampled(text).tolist()) == {7}


def test_uniform_lengths_include_both_bounds_equally_often() -> None:
    values, counts = np.unique(sampled("uniform:3,6"), return_counts=True)
    assert values.tolist() == [3, 4, 5, 6]
    assert counts / MANY == pytest.approx(np.full(4, 0.25), abs=0.02)


def test_log_normal_lengths_have_their_median_and_p90() -> None:
    lengths = sampled("lognormal:430,1400")
    assert np.percentile(lengths, [50, 90]) == pytest.approx([430, 1400], rel=0.05)
    logs = np.log(lengths)
    assert np.percentile(logs, 50) - np.percentile(logs, 10) == pytest.approx(
        np.percentile(logs, 90) - np.percentile(logs, 50), rel=0.05
    )


def test_zipf_lengths_fall_with_a_power() -> None:
    values, counts = np.unique(sampled("zipf:1.5,100"), return_counts=True)
    assert values[0] == 1
    assert values[-1] <= 100
    weights = np.arange(1, 101) ** -1.5
    assert counts[:5] / MANY == pytest.approx(weights[:5] / weights.sum(), rel=0.1)


@pytest.mark.parametrize("text", ["lognormal:1,1000000", "zipf:20,5", "uniform:1,1", "zipf:0.1,9"])
def test_all_lengths_are_within_bounds(text: str) -> None:
    lengths = sampled(text)
    assert lengths.dtype == np.int64
    assert lengths.min() >= 1
    assert lengths.max() <= MAX_LENGTH


def test_the_seed_decides() -> None:
    assert (sampled("zipf:1,99", 1) == sampled("zipf:1,99", 1)).all()
    assert (sampled("zipf:1,99", 1) != sampled("zipf:1,99", 2)).any()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "N must be a number"),
        ("0", "N must be from 1 to 1,000,000"),
        ("-5", "N must be from 1"),
        ("1.5", "N must be a whole number"),
        ("nan", "N must be from"),
        ("1000001", "N must be from"),
        ("fixed:", "N must be a number"),
        ("normal:1,2", "accepted are N, fixed:N"),
        ("uniform:5", "has not the form"),
        ("uniform:5,6,7", "has not the form"),
        ("uniform:6,5", "LOW is above HIGH"),
        ("lognormal:5,4", "MEDIAN is above P90"),
        ("lognormal:0,4", "MEDIAN must be from 1"),
        ("zipf:0,4", "EXPONENT must be above 0"),
        ("zipf:-1,4", "EXPONENT must be from 0"),
        ("zipf:1,0", "MAX must be from 1"),
    ],
)
def test_other_texts_are_refused(text: str, reason: str) -> None:
    with pytest.raises(BenchmarkError) as error:
        parse_lengths(text, "--output-lengths")
    assert reason in str(error.value)
    assert f"--output-lengths {text!r}" in str(error.value)
