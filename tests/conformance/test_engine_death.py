"""When the engine process dies, the server says so at once to everybody, and keeps saying it."""

from __future__ import annotations

import time

import httpx
import psutil
import pytest
from conftest import StartedServer


def engine_of(server: StartedServer) -> psutil.Process:
    [child] = psutil.Process(server.process.pid).children()
    return child


def test_a_killed_engine_fails_open_streams_and_health(starting_server: StartedServer) -> None:
    server = starting_server
    server.wait_until_healthy()
    body = {"prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    lines: list[str] = []
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as response:
        for line in response.iter_lines():
            lines.append(line)
            if len(lines) == 4:
                engine_of(server).kill()
    last = [line for line in lines if line][-1]
    assert '"error"' in last
    assert "engine" in last
    assert httpx.get(f"{server.url}/health").status_code == 503
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "Once"}, timeout=30)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "engine_failed"


@pytest.mark.parametrize("signal", ["terminate", "kill"])
def test_no_engine_outlives_its_server(starting_server: StartedServer, signal: str) -> None:
    server = starting_server
    server.wait_until_healthy()
    engine = engine_of(server)
    getattr(server.process, signal)()
    server.process.wait(20)
    deadline = time.monotonic() + 10
    while engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
