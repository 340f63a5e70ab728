"""Streaming summaries agree with those that keep all requests."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi.telemetry import RequestRecord, StreamingSummary, Summary, Targets, summarise

TARGETS = Targets(ttft=1.0, tbt=0.2)


def records(count: int, seed: int) -> list[RequestRecord]:
    rng = random.Random(seed)
    made = []
    now = 0.0
    for _ in range(count):
        now += rng.expovariate(2)
        first = now + rng.lognormvariate(-1, 1)
        tokens = [first]
        for _ in range(rng.randrange(30)):
            tokens.append(tokens[-1] + rng.choice([0.0, 0.02, rng.lognormvariate(-3, 1)]))
        failure = "dropped" if rng.random() < 0.1 else None
        made.append(
            RequestRecord(
                arrival=now,
                prompt_tokens=rng.randrange(1, 100),
                output_tokens=30,
                tokens=tokens,
                end=tokens[-1],
                scheduling_delay=rng.choice([None, rng.random()]),
                failure=failure,
            )
        )
    return made


def streamed(made: list[RequestRecord], order: random.Random, send_time: float) -> Summary:
    summary = StreamingSummary(TARGETS)
    numbered = list(enumerate(made))
    order.shuffle(numbered)
    for index, record in numbered:
        summary.add(index, record)
    return summary.result(send_time)


@given(st.integers(1, 300), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_figures_are_those_of_all_records(count: int, seed: int) -> None:
    made = records(count, seed)
    exact = summarise(made, TARGETS, 7.0)
    found = streamed(made, random.Random(seed), 7.0)
    for name in Summary.__struct_fields__:
        one, other = getattr(exact, name), getattr(found, name)
        if not hasattr(one, "p50"):
            assert other == pytest.approx(one), name
            continue
        assert other.count == one.count
        for figure in ("mean", "p50", "p90", "p99", "max"):
            value = getattr(one, figure)
            if value is None:
                assert getattr(other, figure) is None
            else:
                assert getattr(other, figure) == pytest.approx(value, rel=0.002, abs=1e-6), figure
            interval = f"{figure}_interval"
            if hasattr(one, interval):
                assert (getattr(one, interval) is None) == (getattr(other, interval) is None)


def test_intervals_are_about_those_of_all_records() -> None:
    made = records(5000, 1)
    exact = summarise(made)
    found = streamed(made, random.Random(1), 1.0)
    for name in ("ttft", "tbt", "max_gap"):
        for percentile in ("p50", "p90", "p99"):
            low, high = getattr(getattr(exact, name), f"{percentile}_interval")
            low_too, high_too = getattr(getattr(found, name), f"{percentile}_interval")
            assert high_too - low_too == pytest.approx(high - low, rel=0.5)
            assert low_too <= getattr(getattr(exact, name), percentile) * 1.002
            assert high_too >= getattr(getattr(exact, name), percentile) * 0.998


def test_nothing_has_no_summary() -> None:
    with pytest.raises(ValueError, match="no request"):
        StreamingSummary().result()
