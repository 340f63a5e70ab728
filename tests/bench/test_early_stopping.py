"""When a run is given up."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi.bench.capacity.verdict import CapacityTargets, EarlyStopping, evaluate
from sarathi.telemetry import RequestRecord, summarise
from tests.bench.made_up import record

TARGETS = CapacityTargets(tbt=0.1)


def stopping_early(
    num_requests: int, output_tokens: int = 11, num_warm_up: int = 0, tells_delay: bool = True
) -> EarlyStopping:
    return EarlyStopping([output_tokens] * num_requests, num_warm_up, TARGETS, tells_delay)


def play(listener: EarlyStopping, index: int, ended: RequestRecord) -> None:
    listener.sent(index, ended.arrival)
    listener.progressed(index, ended.tokens)
    listener.ended(index, ended)


SLOW = record([0.3] * 10)
GOOD = record([0.05] * 10)


def stopped_after(listener: EarlyStopping, records: list[RequestRecord]) -> int | None:
    for index, ended in enumerate(records):
        play(listener, index, ended)
        if listener.stop_reason(ended.end) is not None:
            return index + 1
    return None


def test_a_run_within_the_targets_is_not_stopped() -> None:
    assert stopped_after(stopping_early(100), [GOOD] * 100) is None


def test_more_than_one_percent_of_all_gaps_to_come_stop_it() -> None:
    """1000 gaps are to come. Three requests have 30 long ones, but are as few as three."""
    listener = stopping_early(100)
    assert stopped_after(listener, [SLOW] * 100) == 6
    assert listener.stop_reason(9.0) == (
        "stopped early: 60 of 1000 times between tokens are above 100 ms already, more than 1 %"
    )


def test_a_run_that_is_close_to_its_targets_continues() -> None:
    assert (
        stopped_after(stopping_early(100), [record([0.3] + [0.05] * 9)] * 12 + [GOOD] * 88) is None
    )


def test_requests_of_the_warm_up_do_not_count() -> None:
    assert stopped_after(stopping_early(100, num_warm_up=50), [SLOW] * 50 + [GOOD] * 50) is None
    assert stopped_after(stopping_early(100, num_warm_up=50), [SLOW] * 100) == 50 + 5


def test_a_gap_counts_while_it_lasts() -> None:
    listener = stopping_early(100)
    play(listener, 0, GOOD)
    for index in range(1, 41):
        listener.sent(index, 1.0)
        listener.progressed(index, [1.5])
    assert listener.stop_reason(1.59) is None
    assert "40 of 1000 times between tokens" in (listener.stop_reason(1.61) or "")
    for index in range(1, 41):
        listener.progressed(index, [1.59])
    assert listener.stop_reason(1.61) is None


def test_a_request_that_has_all_its_tokens_waits_for_none() -> None:
    listener = stopping_early(100, output_tokens=3)
    play(listener, 0, record([0.05] * 2))
    for index in range(1, 100):
        listener.sent(index, 0.0)
        listener.progressed(index, [0.5, 0.55, 0.6])
    assert listener.stop_reason(9.0) is None


def test_answers_that_end_early_leave_fewer_gaps() -> None:
    """Three gaps instead of ten, from all of them: the same long gaps are more than 1 %."""
    short = [record([0.05] * 3)] * 90
    long = [record([0.3] + [0.05] * 2)] * 10
    assert stopped_after(stopping_early(100), short + long) == 99
    full = [GOOD] * 90
    assert stopped_after(stopping_early(100), full + long) is None


def test_the_record_replaces_a_guess() -> None:
    """Events without token counts were taken for a token each; the last one held several."""
    listener = stopping_early(100)
    for index in range(100):
        listener.sent(index, 0.0)
        listener.progressed(index, [0.2, 0.6])
        listener.ended(index, GOOD)
    assert listener.stop_reason(1.0) is None


def test_failures_are_a_reason_of_their_own() -> None:
    failed = record([0.3] * 10, failure="timeout")
    listener = stopping_early(200)
    assert stopped_after(listener, [failed] * 200) == 8
    assert listener.stop_reason(9.0) == "stopped early: 8 of 200 requests failed already"


def test_gaps_of_failed_requests_do_not_count() -> None:
    listener = stopping_early(1000)
    failed = record([0.3] * 100, failure="timeout")
    assert stopped_after(listener, [failed] * 8 + [GOOD] * 992) is None


def test_reported_delays_count_once_they_are_reported() -> None:
    late = record([0.05] * 10, ttft=2.9, delay=2.5)
    listener = stopping_early(100)
    assert stopped_after(listener, [GOOD] * 20 + [late] * 80) == 20 + 60
    reason = listener.stop_reason(9.0) or ""
    assert "60 of 100 requests have a scheduling delay above 2 s already, more than half" in reason
    patient = record([0.05] * 10, ttft=9.0, delay=0.5)
    assert stopped_after(stopping_early(100), [patient] * 100) is None


def test_without_reported_delays_waiting_for_a_token_counts() -> None:
    listener = stopping_early(100, tells_delay=False)
    play(listener, 0, record([0.05] * 10, delay=None))
    for index in range(1, 71):
        listener.sent(index, 1.0)
    assert listener.stop_reason(2.9) is None
    assert "70 of 100 requests have a TTFT above 2 s already" in (listener.stop_reason(3.1) or "")
    for index in range(1, 71):
        listener.progressed(index, [2.95])
    assert listener.stop_reason(2.96) is None


def test_where_servers_are_compared_the_delay_that_only_one_reports_does_not_count() -> None:
    targets = CapacityTargets(tbt=0.1, by_ttft=True)
    patient = record([0.05] * 10, ttft=9.0, delay=0.5)
    listener = EarlyStopping([11] * 100, 0, targets, tells_delay=True)
    assert stopped_after(listener, [patient] * 100) == 60
    assert "60 of 100 requests have a TTFT above 2 s" in (listener.stop_reason(9.0) or "")


def test_nothing_is_stopped_before_there_is_a_record_of_it() -> None:
    listener = stopping_early(100, num_warm_up=1, tells_delay=False)
    play(listener, 0, GOOD)
    for index in range(1, 100):
        listener.sent(index, 0.0)
    assert listener.stop_reason(60.0) is None
    listener.ended(1, record([], ttft=60.0, delay=None))
    assert listener.stop_reason(60.0) is not None


def test_it_is_quick() -> None:
    """Thousands may run at the same time, and the client waits meanwhile."""
    listener = stopping_early(4000)
    for index in range(4000):
        listener.sent(index, 0.0)
        listener.progressed(index, [0.1])
    play(listener, 0, GOOD)
    before = time.perf_counter()
    listener.stop_reason(0.15)
    assert time.perf_counter() - before < 0.02


@settings(deadline=None)
@given(st.integers(0), st.booleans(), st.floats(0, 0.4), st.floats(0, 1))
def test_a_run_that_is_stopped_would_have_missed_whatever_came(
    seed: int, tells_delay: bool, long_share: float, late_share: float
) -> None:
    """The rest is answered perfectly, and the verdict is still a miss."""
    rng = random.Random(seed)
    number = 60
    delay = 0.0 if tells_delay else None

    def drawn() -> RequestRecord:
        late = 3.0 if rng.random() < late_share else 0.1
        return record(
            [0.2 if rng.random() < long_share else 0.05 for _ in range(10)],
            ttft=late,
            delay=late if tells_delay else None,
            failure="dropped" if rng.random() < 0.03 else None,
        )

    listener = stopping_early(number, tells_delay=tells_delay)
    records: list[RequestRecord] = []
    for index in range(number):
        records.append(drawn())
        play(listener, index, records[-1])
        if listener.stop_reason(99.0) is not None:
            rest = [record([0.0] * 10, ttft=0.0, delay=delay)] * (number - len(records))
            assert not evaluate(summarise([*records, *rest]), TARGETS).met
            return


@pytest.mark.parametrize("share", [0.0, 0.005])
def test_noise_far_below_the_target_stops_nothing(share: float) -> None:
    rng = random.Random(3)
    for _ in range(20):
        records = [
            record([0.2 if rng.random() < share else 0.05 for _ in range(10)]) for _ in range(100)
        ]
        assert stopped_after(stopping_early(100), records) is None
