"""When a run is given up."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import record

from sarathi.bench.capacity.early_stopping import EarlyStopping
from sarathi.bench.capacity.verdict import CapacityTargets, judge
from sarathi.telemetry import RequestRecord, summarise

TARGETS = CapacityTargets(tbt=0.1)


def watching(
    num_requests: int, output_tokens: int = 11, num_warm_up: int = 0, tells_delay: bool = True
) -> EarlyStopping:
    return EarlyStopping([output_tokens] * num_requests, num_warm_up, TARGETS, tells_delay)


def play(watch: EarlyStopping, index: int, told: RequestRecord) -> None:
    watch.sent(index, told.arrival)
    watch.progressed(index, told.tokens)
    watch.ended(index, told)


SLOW = record([0.3] * 10)
GOOD = record([0.05] * 10)


def stopped_after(watch: EarlyStopping, records: list[RequestRecord]) -> int | None:
    for index, told in enumerate(records):
        play(watch, index, told)
        if watch.verdict(told.end) is not None:
            return index + 1
    return None


def test_a_run_within_the_targets_is_not_stopped() -> None:
    assert stopped_after(watching(100), [GOOD] * 100) is None


def test_more_than_one_percent_of_all_gaps_to_come_stop_it() -> None:
    """1000 gaps are to come. Three requests have 30 long ones, but are as few as three."""
    watch = watching(100)
    assert stopped_after(watch, [SLOW] * 100) == 6
    assert watch.verdict(9.0) == (
        "stopped early: 60 of 1000 times between tokens are above 100 ms already, more than 1 %"
    )


def test_a_run_that_is_barely_lost_goes_on() -> None:
    assert stopped_after(watching(100), [record([0.3] + [0.05] * 9)] * 12 + [GOOD] * 88) is None


def test_requests_of_the_warm_up_do_not_count() -> None:
    assert stopped_after(watching(100, num_warm_up=50), [SLOW] * 50 + [GOOD] * 50) is None
    assert stopped_after(watching(100, num_warm_up=50), [SLOW] * 100) == 50 + 5


def test_a_gap_counts_while_it_lasts() -> None:
    watch = watching(100)
    play(watch, 0, GOOD)
    for index in range(1, 41):
        watch.sent(index, 1.0)
        watch.progressed(index, [1.5])
    assert watch.verdict(1.59) is None
    assert "40 of 1000 times between tokens" in (watch.verdict(1.61) or "")
    for index in range(1, 41):
        watch.progressed(index, [1.59])
    assert watch.verdict(1.61) is None


def test_a_request_that_has_all_its_tokens_waits_for_none() -> None:
    watch = watching(100, output_tokens=3)
    play(watch, 0, record([0.05] * 2))
    for index in range(1, 100):
        watch.sent(index, 0.0)
        watch.progressed(index, [0.5, 0.55, 0.6])
    assert watch.verdict(9.0) is None


def test_answers_that_end_early_leave_fewer_gaps() -> None:
    """Three gaps instead of ten, from all of them: the same long gaps are more than 1 %."""
    short = [record([0.05] * 3)] * 90
    long = [record([0.3] + [0.05] * 2)] * 10
    assert stopped_after(watching(100), short + long) == 99
    full = [GOOD] * 90
    assert stopped_after(watching(100), full + long) is None


def test_the_record_replaces_a_guess() -> None:
    """Events without token counts were taken for a token each; the last one held several."""
    watch = watching(100)
    for index in range(100):
        watch.sent(index, 0.0)
        watch.progressed(index, [0.2, 0.6])
        watch.ended(index, GOOD)
    assert watch.verdict(1.0) is None


def test_failures_are_a_reason_of_their_own() -> None:
    failed = record([0.3] * 10, failure="timeout")
    watch = watching(200)
    assert stopped_after(watch, [failed] * 200) == 8
    assert watch.verdict(9.0) == "stopped early: 8 of 200 requests failed already"


def test_gaps_of_failed_requests_do_not_count() -> None:
    watch = watching(1000)
    failed = record([0.3] * 100, failure="timeout")
    assert stopped_after(watch, [failed] * 8 + [GOOD] * 992) is None


def test_delays_that_the_server_tells_count_once_they_are_told() -> None:
    late = record([0.05] * 10, ttft=2.9, delay=2.5)
    watch = watching(100)
    assert stopped_after(watch, [GOOD] * 20 + [late] * 80) == 20 + 60
    told = watch.verdict(9.0) or ""
    assert "60 of 100 requests have a scheduling delay above 2 s already, more than half" in told
    patient = record([0.05] * 10, ttft=9.0, delay=0.5)
    assert stopped_after(watching(100), [patient] * 100) is None


def test_where_no_delay_is_told_waiting_for_a_token_counts() -> None:
    watch = watching(100, tells_delay=False)
    play(watch, 0, record([0.05] * 10, delay=None))
    for index in range(1, 71):
        watch.sent(index, 1.0)
    assert watch.verdict(2.9) is None
    assert "70 of 100 requests have a TTFT above 2 s already" in (watch.verdict(3.1) or "")
    for index in range(1, 71):
        watch.progressed(index, [2.95])
    assert watch.verdict(2.96) is None


def test_where_servers_are_compared_the_delay_that_one_tells_does_not_count() -> None:
    targets = CapacityTargets(tbt=0.1, by_ttft=True)
    patient = record([0.05] * 10, ttft=9.0, delay=0.5)
    watch = EarlyStopping([11] * 100, 0, targets, tells_delay=True)
    assert stopped_after(watch, [patient] * 100) == 60
    assert "60 of 100 requests have a TTFT above 2 s" in (watch.verdict(9.0) or "")


def test_nothing_is_stopped_before_there_is_a_record_of_it() -> None:
    watch = watching(100, num_warm_up=1, tells_delay=False)
    play(watch, 0, GOOD)
    for index in range(1, 100):
        watch.sent(index, 0.0)
    assert watch.verdict(60.0) is None
    watch.ended(1, record([], ttft=60.0, delay=None))
    assert watch.verdict(60.0) is not None


def test_it_is_quick() -> None:
    """Thousands may run at the same time, and the client waits meanwhile."""
    watch = watching(4000)
    for index in range(4000):
        watch.sent(index, 0.0)
        watch.progressed(index, [0.1])
    play(watch, 0, GOOD)
    before = time.perf_counter()
    watch.verdict(0.15)
    assert time.perf_counter() - before < 0.02


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

    watch = watching(number, tells_delay=tells_delay)
    records: list[RequestRecord] = []
    for index in range(number):
        records.append(drawn())
        play(watch, index, records[-1])
        if watch.verdict(99.0) is not None:
            rest = [record([0.0] * 10, ttft=0.0, delay=delay)] * (number - len(records))
            assert not judge(summarise([*records, *rest]), TARGETS).met
            return


@pytest.mark.parametrize("share", [0.0, 0.005])
def test_noise_far_below_the_target_stops_nothing(share: float) -> None:
    rng = random.Random(3)
    for _ in range(20):
        records = [
            record([0.2 if rng.random() < share else 0.05 for _ in range(10)]) for _ in range(100)
        ]
        assert stopped_after(watching(100), records) is None
