"""Latencies of one request, computed by hand."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sarathi.telemetry import RequestRecord


def record(*tokens: float, **fields: Any) -> RequestRecord:
    return RequestRecord(
        arrival=1.0, prompt_tokens=5, output_tokens=4, tokens=list(tokens), end=9.0, **fields
    )


def test_latencies_follow_from_the_times_of_the_tokens() -> None:
    of = record(1.5, 1.75, 3.0, 3.0)
    assert of.ttft == 0.5
    assert of.gaps == [0.25, 1.25, 0.0]
    assert of.max_gap == 1.25
    assert of.end_to_end == 2.0
    assert of.normalized == 0.5


def test_the_first_token_makes_no_gap() -> None:
    assert record(1.5).gaps == []
    assert record(1.5).max_gap is None


def test_without_tokens_there_are_no_latencies() -> None:
    empty = record()
    assert (empty.ttft, empty.max_gap, empty.end_to_end, empty.normalized) == (None,) * 4


def test_a_record_survives_a_file() -> None:
    before = record(1.5, 1.75, lag=0.25, scheduling_delay=0.125)
    assert msgspec.json.decode(msgspec.json.encode(before), type=RequestRecord) == before


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        record().end = 2.0  # type: ignore[misc]
