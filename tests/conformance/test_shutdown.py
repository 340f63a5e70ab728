"""Shutdown of a server that has open requests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

LONG = {"prompt": "Once upon a time", "max_tokens": 1900, "ignore_eos": True, "temperature": 0}


class Request(threading.Thread):
    """One request in the background."""

    def __init__(self, url: str, **fields: object) -> None:
        super().__init__(daemon=True)
        self._url, self._body = f"{url}/v1/completions", {**LONG, **fields}
        self.started = threading.Event()
        self.status = 0
        self.text = ""
        self.start()

    def run(self) -> None:
        with httpx.stream("POST", self._url, json=self._body, timeout=120) as response:
            self.status = response.status_code
            for piece in response.iter_text():
                self.text += piece
                self.started.set()

    def finished(self) -> Request:
        self.join(60)
        assert not self.is_alive()
        return self

    @property
    def last_event(self) -> Any:
        return json.loads(self.text.rstrip().rsplit("data: ", 1)[1])


def wait_for_running(url: str, count: int) -> None:
    deadline = time.monotonic() + 30
    while httpx.get(f"{url}/stats").json()["running"] < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_plain_log(log: str) -> None:
    assert "Traceback" not in log
    assert "Exception" not in log
    assert "Cancel" not in log


@pytest.mark.parametrize("starting_server", [("--drain-timeout", "1s")], indirect=True)
def test_requests_that_outlive_the_drain_timeout_end_with_an_error(
    starting_server,
):
    server = starting_server
    server.wait_until_healthy()
    streams = [Request(server.url, stream=True) for _ in range(3)]
    whole = Request(server.url)
    several = Request(server.url, n=2, temperature=1)
    address = urlsplit(server.url)
    idle, half = (socket.create_connection((address.hostname, address.port)) for _ in range(2))
    half.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 9\r\n\r\n{")
    deaf = socket.create_connection((address.hostname, address.port))
    body = json.dumps({**LONG, "stream": True}).encode()
    deaf.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    wait_for_running(server.url, 7)
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    for stream in streams:
        stream.finished()
        assert stream.status == 200
        assert stream.last_event["error"]["code"] == "server_shutting_down"
    for reply in (whole, several):
        reply.finished()
        assert reply.status == 503
        error = json.loads(reply.text)["error"]
        assert (error["code"], error["type"]) == ("server_shutting_down", "server_error")
    assert server.process.wait(20) == 0
    assert time.monotonic() - began < 15  # far less than what the requests would have taken
    for connection in (idle, half, deaf):
        connection.close()
    assert_plain_log(server.log)
    assert server.log.count("shutting down") == 1
    assert server.log.count("drain timeout") == 1


def test_requests_are_drained_and_a_second_signal_ends_them(starting_server):
    server = starting_server
    server.wait_until_healthy()
    long = Request(server.url, stream=True)
    short = Request(server.url, stream=True, max_tokens=40)
    whole = Request(server.url, max_tokens=40)
    assert long.started.wait(30)
    assert short.started.wait(30)
    server.process.send_signal(signal.SIGTERM)
    assert short.finished().text.endswith("data: [DONE]\n\n")
    assert whole.finished().status == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")
    assert long.is_alive()
    server.process.send_signal(signal.SIGTERM)
    assert long.finished().last_event["error"]["code"] == "server_shutting_down"
    assert server.process.wait(15) == 0
    assert_plain_log(server.log)


def test_a_server_whose_stderr_is_closed_still_ends():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    reading, writing = os.pipe()
    command = (sys.executable, "-m", "sarathi.cli.main", "serve", "smollm2-135m")
    process = subprocess.Popen((*command, "--port", str(port)), stderr=writing)
    os.close(writing)
    try:
        with open(reading, "rb") as lines:
            while b"is ready on" not in lines.readline():
                assert process.poll() is None
        process.send_signal(signal.SIGTERM)  # after the pipe has been closed
        assert process.wait(15) == 0
    finally:
        process.kill()


def test_an_idle_server_ends_at_once(starting_server):
    server = starting_server
    server.wait_until_healthy()
    with httpx.Client() as client:  # which keeps its connection
        assert client.get(f"{server.url}/health").status_code == 200
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 0
    assert_plain_log(server.log)
