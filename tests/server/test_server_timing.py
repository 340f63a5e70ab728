"""The header Server-Timing: how long a request waited to be scheduled."""

from __future__ import annotations

import asyncio

import pytest

from tests.server.fake_engine import FakeEngine, chat, complete, error


def timing(response) -> str:
    assert response.status_code == 200, response.text
    return response.headers["server-timing"]


@pytest.mark.parametrize("ask", [complete, chat])
@pytest.mark.parametrize("stream", [False, True])
def test_a_response_has_its_scheduling_delay_in_milliseconds(ask, stream):
    engine = FakeEngine("Hi", delay=lambda prompt: 0.0123456)
    assert timing(ask(engine, stream=stream)) == "queue;dur=12.346"


def delayed(seconds: float) -> FakeEngine:
    return FakeEngine(delay=lambda prompt: seconds)


@pytest.mark.parametrize("stream", [False, True])
def test_long_and_no_delays_are_plain_numbers(stream):
    for seconds, text in ((0.0, "0.000"), (12345.678, "12345678.000")):
        response = complete(delayed(seconds), stream=stream)
        assert timing(response) == f"queue;dur={text}"


@pytest.mark.parametrize("n", [1, 2])
def test_a_whole_response_has_the_longest_delay_of_all_prompts(n):
    engine = FakeEngine(delay=lambda prompt: len(prompt) / 8)
    assert timing(complete(engine, ["abc", "abcdef", "a"], n=n)) == "queue;dur=750.000"


class SecondIsLate(FakeEngine):
    """All but the first request get their tokens later."""

    def submit(self, prompt_ids, params, scheduling):
        generation = super().submit(prompt_ids, params, scheduling)
        if len(self.generations) > 1:
            promptly = generation.next

            async def late():
                await asyncio.sleep(0.01)
                return await promptly()

            vars(generation)["next"] = late
        return generation


@pytest.mark.parametrize(("stream", "delay"), [(True, "125.000"), (False, "375.000")])
def test_a_stream_has_the_longest_delay_of_the_started_prompts(stream, delay):
    """Its head does not wait for the last of many prompts."""
    engine = SecondIsLate("Hi", delay=lambda prompt: len(prompt) / 8)
    assert timing(complete(engine, ["a", "bcd"], stream=stream)) == f"queue;dur={delay}"


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_has_no_such_header(stream):
    engine = FakeEngine(script=lambda prompt, params: [])
    engine.on_silence = "the engine died"
    response = complete(engine, stream=stream)
    error(response, 400)
    assert "server-timing" not in response.headers
