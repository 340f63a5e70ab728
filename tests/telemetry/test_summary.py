"""A summary of few requests, computed by hand."""

from __future__ import annotations

import pytest

from sarathi.telemetry import RequestRecord, Targets, summarise


def request(arrival: float, *tokens: float, failure: str | None = None) -> RequestRecord:
    return RequestRecord(
        arrival=arrival,
        prompt_tokens=100,
        output_tokens=3,
        tokens=[arrival + token for token in tokens],
        end=arrival + max(tokens, default=1.0),
        failure=failure,
    )


RECORDS = [
    request(0.0, 0.5, 1.0, 1.5),
    request(1.0, 0.25, 0.5, 2.5),
    request(2.0, 0.5, failure="dropped"),
    request(4.0, failure="status_500"),
]


def test_rates_and_counts() -> None:
    of = summarise(RECORDS)
    assert (of.requests, of.completed) == (4, 2)
    assert of.failures == {"dropped": 1, "status_500": 1}
    assert of.duration == 5.0
    assert of.request_rate == 1.0
    assert of.completed_per_second == 0.4
    assert of.output_tokens_per_second == 7 / 5
    assert of.total_tokens_per_second == (200 + 7) / 5


def test_latencies_are_those_of_complete_answers() -> None:
    of = summarise(RECORDS)
    assert (of.ttft.count, of.ttft.p50, of.ttft.max) == (2, 0.25, 0.5)
    assert (of.tbt.count, of.tbt.p50, of.tbt.p99) == (4, 0.5, 2.0)
    assert (of.max_gap.p50, of.max_gap.max) == (0.5, 2.0)
    assert of.end_to_end.max == 2.5
    assert of.scheduling_delay.count == 0


@pytest.mark.parametrize(
    ("targets", "met"),
    [
        (Targets(), 2),
        (Targets(ttft=0.4), 1),
        (Targets(tbt=0.5), 1),
        (Targets(ttft=0.4, tbt=0.5), 0),
    ],
)
def test_goodput_counts_requests_that_met_all_targets(targets: Targets, met: int) -> None:
    of = summarise(RECORDS, targets)
    assert (of.goodput, of.attainment) == (met / 4 * of.request_rate, met / 4)


def test_the_time_until_the_last_answer_takes_nothing_from_goodput() -> None:
    """100 requests at 1/s, the last of which is answered for 30 s."""
    records = [request(float(at), 0.5) for at in range(99)] + [request(99.0, 0.5, 30.0)]
    of = summarise(records, Targets(ttft=1.0), send_time=100.0)
    assert (of.goodput, of.attainment) == (1.0, 1.0)
    assert of.completed_per_second == pytest.approx(100 / 129)


def test_without_targets_there_is_no_goodput() -> None:
    of = summarise(RECORDS)
    assert (of.goodput, of.attainment) == (None, None)


def test_nothing_completed() -> None:
    of = summarise([request(0.0, failure="timeout")])
    assert (of.completed, of.request_rate, of.ttft.p99) == (0, 0.0, None)
    assert of.failures == {"timeout": 1}


def test_the_rate_is_that_of_the_time_spent_sending() -> None:
    assert summarise(RECORDS, send_time=8.0).request_rate == 0.5


def test_no_request_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no request"):
        summarise([])
