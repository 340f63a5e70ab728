"""Verdicts on runs whose latencies are made up."""

from __future__ import annotations

import pytest

from sarathi.bench.capacity.verdict import (
    CapacityTargets,
    Verdict,
    evaluate,
    evaluate_runs,
    pool_runs,
)
from sarathi.telemetry import RequestRecord, summarise
from tests.bench.made_up import record, run

TARGETS = CapacityTargets(tbt=0.1)
GOOD = record()
SLOW = record([0.05, 0.3])


def verdict(*records: RequestRecord) -> Verdict:
    return evaluate(summarise(records), TARGETS)


def test_a_run_far_within_the_targets_meets_them_for_certain() -> None:
    found = verdict(*[GOOD] * 50)
    assert (found.met, found.certain) == (True, True)
    assert found.reason == (
        "no failures, P99 TBT 50 ms within 100 ms, median scheduling delay 100 ms within 2 s"
    )


def test_a_short_median_does_not_excuse_a_queue_that_grows_for_a_few() -> None:
    """Of a scheduler that lets some pass others."""
    delays = ([0.1] * 4 + [60.0]) * 20
    summary = summarise([record([0.01], delay=delay) for delay in delays])
    assert evaluate(summary, TARGETS).met
    bounded = CapacityTargets(tbt=0.1, tail_delay=10.0)
    found = evaluate(summary, bounded)
    assert not found.met
    assert found.certain
    assert found.reason == "P90 scheduling delay 60 s above 10 s"
    few = summarise([record([0.01], delay=delay) for delay in ([0.1] * 19 + [60.0]) * 5])
    assert evaluate(few, bounded).met


def test_what_is_on_the_target_meets_it() -> None:
    assert evaluate(summarise([record([0.125])]), CapacityTargets(tbt=0.125)).met


def test_many_long_gaps_miss_for_certain() -> None:
    found = verdict(*[GOOD, SLOW] * 40)
    assert found == Verdict(False, True, "P99 TBT 300 ms above 100 ms")


def test_a_run_that_another_one_could_contradict_is_not_certain() -> None:
    """5 of 495 gaps are long, hence just more than 1 %; then just as many as 1 % allows."""
    assert verdict(*[GOOD] * 50, *[SLOW] * 5).met is False
    assert verdict(*[GOOD] * 50, *[SLOW] * 5).certain is False
    found = verdict(*[GOOD] * 60, *[SLOW] * 5)
    assert (found.met, found.certain) == (True, False)


def test_the_median_scheduling_delay_counts() -> None:
    late = record(ttft=4.0, delay=3.0)
    assert verdict(*[GOOD, late, late, late] * 10) == Verdict(
        False, True, "median scheduling delay 3 s above 2 s"
    )
    assert verdict(*[GOOD] * 20, *[late] * 19).certain is False
    assert verdict(*[GOOD] * 38, late, late).certain is True


def test_the_ttft_stands_for_a_delay_that_is_not_reported() -> None:
    found = verdict(*[record(ttft=2.5, delay=None)] * 30)
    assert found == Verdict(False, True, "median TTFT 2.5 s above 2 s")
    assert verdict(*[record(ttft=2.5, delay=1.0)] * 30).met


def test_the_ttft_counts_in_place_of_any_delay_where_servers_are_compared() -> None:
    summary = summarise([record(ttft=2.5, delay=1.0)] * 40)
    found = evaluate(summary, CapacityTargets(tbt=0.1, by_ttft=True))
    assert found == Verdict(False, True, "median TTFT 2.5 s above 2 s")


@pytest.mark.parametrize("one", [GOOD, SLOW, record(delay=5.0)])
def test_too_few_requests_are_never_certain(one: RequestRecord) -> None:
    assert verdict(*[one] * 19).certain is False
    assert verdict(*[one] * 200).certain is True


@pytest.mark.parametrize(
    ("failed", "met", "certain"),
    [(0, True, True), (1, True, True), (8, True, False), (12, False, False), (30, False, True)],
)
def test_one_percent_of_failures_is_allowed(failed: int, met: bool, certain: bool) -> None:
    bad = [record(failure="timeout")] * failed
    found = verdict(*[GOOD] * (1000 - failed), *bad)
    assert (found.met, found.certain) == (met, certain)
    if failed:
        assert f"{failed} of 1000 failed ({failed} timeout)" in found.reason


def test_all_that_is_missed_is_reported() -> None:
    records = [record([0.3], delay=5.0)] * 20 + [record(failure="connect")] * 5
    reason = verdict(*records, *[record(failure="timeout")] * 2).reason
    assert reason == (
        "7 of 27 failed (5 connect, 2 timeout), P99 TBT 300 ms above 100 ms, "
        "median scheduling delay 5 s above 2 s"
    )


def test_answers_of_one_token_have_no_gaps_to_miss() -> None:
    assert verdict(*[record([])] * 20).met


def test_answers_without_tokens_are_no_answers() -> None:
    empty = RequestRecord(arrival=0.0, prompt_tokens=1, output_tokens=5, end=1.0)
    found = verdict(*[empty] * 20)
    assert found == Verdict(False, True, "no complete answer has a token")


def test_a_run_without_a_complete_answer_misses() -> None:
    found = verdict(*[record(failure="connect")] * 20)
    assert (found.met, found.certain) == (False, True)
    assert "20 of 20 failed" in found.reason


def test_runs_of_one_rate_are_judged_together() -> None:
    missed, met = run([GOOD] * 10 + [SLOW]), run([GOOD] * 300)
    assert evaluate_runs([missed], TARGETS)[0].met is False
    found, summary = evaluate_runs([missed, met], TARGETS)
    assert found.met is True
    assert summary.requests == 311


def test_a_run_that_was_stopped_decides_for_certain() -> None:
    stopped = run([GOOD], stopped="stopped early: because")
    found, summary = evaluate_runs([run([GOOD] * 50), stopped], TARGETS)
    assert found == Verdict(False, True, "stopped early: because")
    assert summary.requests == 1


def test_pooled_runs_are_as_one_in_latencies_and_a_mean_in_throughput() -> None:
    """The second run takes three times as long as the first, and does as much."""
    short = [record([0.05] * 4, arrival=at, ttft=0.8) for at in (0.0, 1.0)]
    long = [record([0.05] * 4, arrival=at, ttft=0.8) for at in (0.0, 5.0)]
    one, other = run(short), run(long)
    both = pool_runs([one, other])
    assert (one.summary.duration, other.summary.duration) == pytest.approx((2.0, 6.0))
    assert both.requests == 4
    assert both.tbt.count == 16
    assert both.duration == pytest.approx(8.0)
    assert both.request_rate == pytest.approx(4 / 6)
    assert both.completed_per_second == pytest.approx(4 / 8)
    assert both.output_tokens_per_second == pytest.approx(20 / 8)
    assert both.total_tokens_per_second == pytest.approx(100 / 8)


def test_a_target_of_ttft_applies_beside_that_of_the_delay() -> None:
    targets = CapacityTargets(tbt=0.1, ttft=0.01)
    found = evaluate(summarise([GOOD] * 50), targets)
    assert (found.met, found.certain) == (False, True)
    assert found.reason == "P90 TTFT 200 ms above 10 ms"
    nothing = evaluate(summarise([record(failure="timeout")] * 50), targets)
    assert not nothing.met
    assert nothing.reason.count("no complete answer has a token") == 1
