"""Turns and ratios of a comparison."""

from __future__ import annotations

import pytest

from sarathi.bench.results import Lag, Run, compare_runs, measurement_order
from sarathi.telemetry import RequestRecord, summarise


def run(label: str, rate: float, tbt: float, failure: str | None = None) -> Run:
    records = [
        RequestRecord(
            arrival=0.0,
            prompt_tokens=10,
            output_tokens=3,
            tokens=[1.0, 1.0 + tbt, 1.0 + 2 * tbt],
            end=2.0,
            failure=failure,
        )
    ]
    return Run(
        label=label,
        server=label,
        model="m",
        workload={},
        machine="here",
        began=0.0,
        rate=rate,
        seed=0,
        salt="",
        records=records,
        summary=summarise(records),
        lag=Lag(p50=0.0, p99=0.0, max=0.0, cpu=0.0),
    )


def test_every_target_is_measured_at_every_rate_in_every_round_and_starts_some() -> None:
    played = list(measurement_order([1.0, 2.0], 3, 3))
    assert len(played) == 6
    assert all(sorted(order) == [0, 1, 2] for _, _, order in played)
    assert {order[0] for _, _, order in played} == {0, 1, 2}


def test_ratios_are_taken_round_by_round() -> None:
    """The machine is twice as slow in the second round: the ratio stays."""
    runs = [run("a", 1, 0.1), run("b", 1, 0.2), run("b", 1, 0.4), run("a", 1, 0.2)]
    first, second = compare_runs(runs, ["a", "b"])
    assert (first.label, second.label) == ("a", "b")
    assert first.ratios["tbt_p99"] == pytest.approx(1)
    assert second.ratios["tbt_p99"] == pytest.approx(2)
    assert second.figures["tbt_p99"] == pytest.approx(0.3)


def test_rates_are_kept_apart() -> None:
    runs = [run("a", 1, 0.1), run("b", 1, 0.1), run("a", 2, 0.1), run("b", 2, 0.3)]
    rows = compare_runs(runs, ["a", "b"])
    assert [(row.rate, row.label) for row in rows] == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
    assert rows[3].ratios["tbt_p50"] == pytest.approx(3)


def test_what_failed_has_no_ratio_but_is_counted() -> None:
    rows = compare_runs([run("a", 1, 0.1), run("b", 1, 0.1, failure="dropped")], ["a", "b"])
    assert rows[1].failed == 1
    assert rows[1].ratios["ttft_p50"] is None
