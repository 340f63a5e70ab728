"""Clients that leave and engines that die, against the ASGI application itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import Message

from tests.server.fake_engine import MODEL, FakeEngine, complete, error, fake_app

HELLO = [[72], [105]]  # two tokens, then silence


def silent_after(steps: list[list[int]]) -> FakeEngine:
    return FakeEngine(script=lambda prompt, params: [list(step) for step in steps])


class Client:
    """Sends one request, and disconnects when `leave` is set."""

    def __init__(self, path: str, body: dict[str, Any]) -> None:
        self.leave = asyncio.Event()
        self.received: list[Message] = []
        self._path = path
        self._body: bytes | None = json.dumps(body).encode()

    async def run(self, engine: FakeEngine) -> None:
        app = fake_app(engine)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": self._path,
            "raw_path": self._path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [],
            "client": ("test", 1),
            "server": ("test", 80),
        }
        await app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.received.append(message)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("steps", [[], HELLO], ids=["before the first token", "in mid-stream"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_disconnect_cancels_all_generations(path, n, steps, stream):
    async def scenario() -> None:
        engine = silent_after(steps)
        body = {"model": MODEL, "n": n, "stream": stream}
        body |= {"prompt": "p"} if "chat" not in path else {"messages": [USER]}
        client = Client(path, body)
        serving = asyncio.create_task(client.run(engine))
        await asyncio.wait_for(engine.silent.wait(), 5)
        assert not any(generation.cancelled for generation in engine.generations)
        client.leave.set()
        await asyncio.wait_for(serving, 5)
        assert len(engine.generations) == n
        assert all(generation.cancelled for generation in engine.generations)
        # Nothing of the request goes on.
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


USER = {"role": "user", "content": "hi"}


def test_a_server_that_shuts_down_cancels_too():
    async def scenario() -> None:
        engine = silent_after(HELLO)
        client = Client("/v1/completions", {"prompt": "p", "stream": True})
        serving = asyncio.create_task(client.run(engine))
        await asyncio.wait_for(engine.silent.wait(), 5)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert engine.generations[0].cancelled

    asyncio.run(scenario())


@pytest.mark.parametrize("n", [1, 3])
def test_an_engine_that_dies_in_mid_stream_ends_the_stream_with_an_error(n):
    engine = silent_after(HELLO)
    engine.on_silence = "the engine died"
    response = complete(engine, stream=True, n=n)
    assert response.status_code == 200
    *tokens, last, rest = response.text.split("\n\n")
    assert tokens
    assert rest == ""
    answer = json.loads(last.removeprefix("data: "))["error"]
    assert "the engine died" in answer["message"]
    assert all(generation.cancelled for generation in engine.generations)


def test_an_engine_that_dies_before_a_whole_response_is_an_error():
    engine = silent_after(HELLO)
    engine.on_silence = "the engine died"
    error(complete(engine), 400)
    assert engine.generations[0].cancelled


def _fail_in_submit(engine: FakeEngine) -> Callable[..., Any]:
    submit = engine.submit

    def second_fails(prompt_ids: Any, params: Any, scheduling: Any) -> Any:
        if engine.generations:
            raise ZeroDivisionError
        return submit(prompt_ids, params, scheduling)

    return second_fails


def test_generations_submitted_before_a_failure_are_cancelled():
    engine = silent_after(HELLO)
    engine.submit = _fail_in_submit(engine)  # type: ignore[method-assign]
    error(complete(engine, n=2), 500)
    assert engine.generations[0].cancelled


@pytest.mark.parametrize("stream", [False, True])
def test_generations_are_cancelled_when_the_handler_fails(stream):
    engine = FakeEngine(script=lambda prompt, params: [[72], [-2], [105]])
    response = complete(engine, stream=stream)
    if stream:
        assert "internal_error" in response.text
        assert "[DONE]" not in response.text
    else:
        error(response, 500)
    assert engine.generations[0].cancelled
