"""Latencies that the HTTP process measures."""

from __future__ import annotations

import asyncio
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from sarathi.engine.config import EngineConfig
from sarathi.engine.messages import Iteration, Refusal, TokenOutput
from sarathi.fleet.engine_client import EngineClient, EngineError, Generation
from sarathi.sampling.params import SamplingParams
from sarathi.scheduler import FinishReason, SchedulingParams
from sarathi.telemetry.request_latencies import Histogram, Latencies, Stopwatch
from sarathi.telemetry.stats import Stats

STATS = Stats(0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0.0, 0.0)


class Wire:
    """A client whose engine is the test, and the clock that it reads."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sent: list[bytes] = []
        self.latencies = Latencies()
        self.client = EngineClient(Path("model"), EngineConfig(), self)
        self.client._listener = self  # type: ignore[assignment]
        self._ids = count()

    def send(self, message: bytes) -> None:
        self.sent.append(message)

    def submit(self) -> Generation:
        stopwatch = Stopwatch(self.latencies, self.now)
        generation = Generation(
            next(self._ids),
            [1, 2],
            SamplingParams(),
            SchedulingParams(),
            stopwatch,
            self.client.cancel,
        )
        self.client.submit(generation)
        return generation

    def on_first_token(self, generation: Generation) -> None: ...

    def on_finished(self, generation: Generation) -> None: ...

    def iterate(self, now: float, *outputs: TokenOutput, refuse: tuple[int, ...] = ()) -> None:
        """The tokens of an iteration come in."""
        self.now = now
        refusals = [Refusal(request_id, "no") for request_id in refuse]
        self.client._deliver(Iteration(list(outputs), refusals, STATS))


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    wire = Wire()
    monkeypatch.setattr("time.monotonic", lambda: wire.now)
    return wire


def token(
    request_id: int, reason: FinishReason | None = None, delay: float | None = None
) -> TokenOutput:
    return TokenOutput(request_id, 7, reason, None, 0, delay)


def content(histogram: Histogram) -> dict[float, int]:
    """How many values are in each bucket that has any, by its upper bound."""
    bounds = [bound for bound, _ in histogram.cumulative()]
    return {bound: count for bound, count in zip(bounds, histogram.counts, strict=True) if count}


def test_latencies_of_two_requests_by_hand(wire: Wire) -> None:
    wire.submit()
    wire.now = 100.5
    wire.submit()
    wire.iterate(100.75, token(0, delay=0.25))
    wire.iterate(101.0, token(0), token(1, delay=0.125))
    wire.iterate(101.0625, token(0), token(1))
    wire.iterate(102.0625, token(0, "stop"), token(1))
    wire.iterate(102.1875, token(1, "length"))
    latencies = wire.latencies
    # Arrivals at 100 and 100.5. Gaps: 0.25, 0.0625, 1 and 0.0625, 1, 0.125.
    assert content(latencies.time_to_first_token) == {0.5: 1, 0.75: 1}
    assert latencies.time_to_first_token.sum == 1.25
    assert content(latencies.time_between_tokens) == {0.075: 2, 0.15: 1, 0.3: 1, 1.0: 2}
    assert latencies.time_between_tokens.sum == 2.5
    assert content(latencies.max_gap) == {1.0: 2}
    assert content(latencies.end_to_end) == {2.0: 1, 3.0: 1}
    assert latencies.end_to_end.sum == 2.0625 + 1.6875
    assert content(latencies.scheduling_delay) == {0.15: 1, 0.3: 1}
    assert latencies.output_tokens == 8
    assert latencies.requests == {"stop": 1, "length": 1, "cancelled": 0, "failed": 0}


def test_tokens_that_come_together_have_no_gap_between_them(wire: Wire) -> None:
    wire.submit()
    wire.iterate(101.0, token(0), token(0), token(0, "length"))
    latencies = wire.latencies
    assert content(latencies.time_between_tokens) == {0.001: 2}
    assert content(latencies.max_gap) == {0.001: 1}
    assert (latencies.time_between_tokens.sum, latencies.max_gap.sum) == (0.0, 0.0)


def test_a_single_token_has_no_gap(wire: Wire) -> None:
    wire.submit()
    wire.iterate(101.0, token(0, "length"))
    latencies = wire.latencies
    assert latencies.time_between_tokens.count == latencies.max_gap.count == 0
    assert latencies.end_to_end.sum == latencies.time_to_first_token.sum == 1.0


def test_of_a_cancelled_request_count_the_tokens_that_came(wire: Wire) -> None:
    leaver = wire.submit()
    wire.iterate(101.0, token(0, delay=0.5))
    wire.iterate(103.0, token(0))
    leaver.cancel()
    leaver.cancel()
    leaver.stop()
    wire.iterate(104.0, token(0))  # was under way
    latencies = wire.latencies
    assert content(latencies.time_to_first_token) == {1.0: 1}
    assert content(latencies.time_between_tokens) == {2.0: 1}
    assert latencies.scheduling_delay.count == 1
    assert latencies.end_to_end.count == latencies.max_gap.count == 0
    assert latencies.requests == {"stop": 0, "length": 0, "cancelled": 1, "failed": 0}


def test_a_request_that_a_stop_string_ends_is_finished(wire: Wire) -> None:
    answer = wire.submit()
    wire.iterate(101.0, token(0))
    wire.iterate(101.5, token(0))
    wire.now = 109.0
    answer.stop()
    answer.cancel()
    assert len(wire.sent) == 2, "the engine did not get one message"
    latencies = wire.latencies
    assert latencies.end_to_end.sum == 1.5  # to its last token
    assert latencies.max_gap.sum == 0.5
    assert latencies.requests == {"stop": 1, "length": 0, "cancelled": 0, "failed": 0}


def test_after_its_end_a_request_can_neither_be_cancelled_nor_stopped(wire: Wire) -> None:
    answer = wire.submit()
    wire.iterate(101.0, token(0, "length"))
    answer.stop()
    answer.cancel()
    assert wire.latencies.requests["length"] == 1
    assert sum(wire.latencies.requests.values()) == 1


def test_refused_requests_and_those_of_a_dead_engine_have_failed(wire: Wire) -> None:
    refused, orphan = wire.submit(), wire.submit()
    wire.iterate(101.0, token(1), refuse=(0,))
    assert wire.client.take_open() == [orphan]
    orphan.fail(EngineError("the engine died"))
    orphan.cancel()
    latencies = wire.latencies
    assert latencies.requests == {"stop": 0, "length": 0, "cancelled": 0, "failed": 2}
    assert latencies.time_to_first_token.count == 1
    assert latencies.end_to_end.count == 0

    async def read(generation: Generation) -> Any:
        return await generation.next()

    with pytest.raises(EngineError, match="no"):
        asyncio.run(read(refused))


@pytest.mark.parametrize("target", [0.05, 0.1, 0.2, 0.5, 1.0, 5.0])
def test_usual_targets_are_bounds(wire: Wire, target: float) -> None:
    assert target in wire.latencies.time_between_tokens.bounds
