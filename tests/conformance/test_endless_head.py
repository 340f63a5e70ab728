"""A client without a key cannot stop the streams of other clients."""

from __future__ import annotations

import socket
import threading
import time
from itertools import pairwise
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

STREAMS = 8
MEBIBYTE = 2**20
# Shorter gaps differ by chance on a shared machine.
UNNOTICED = 0.25  # seconds


class Stream(threading.Thread):
    """An answer that is read as it comes."""

    def __init__(self, url: str, key: str) -> None:
        super().__init__(daemon=True)
        self._url, self._headers = f"{url}/v1/completions", {"Authorization": f"Bearer {key}"}
        self._enough = threading.Event()
        self.times: list[float] = []
        self.start()

    def run(self) -> None:
        body = {"prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "stream": True}
        with httpx.stream(
            "POST", self._url, json=body, headers=self._headers, timeout=60
        ) as response:
            for _ in response.iter_raw():
                self.times.append(time.monotonic())
                if self._enough.is_set():
                    return

    def stop(self) -> None:
        self._enough.set()
        self.join(20)
        assert not self.is_alive()


def longest_gap(streams: list[Stream], begin: float, end: float) -> float:
    gaps = []
    for stream in streams:
        times = [begin, *(moment for moment in stream.times if begin < moment < end), end]
        gaps += [after - before for before, after in pairwise(times)]
    return max(gaps)


def send_endless_header(url: str) -> None:
    """64 MiB in one line, as far as the server reads it."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nX-Endless: ")
        for _ in range(64):
            try:
                connection.sendall(b"a" * MEBIBYTE)
            except OSError:
                return
    pytest.fail("the server has read 64 MiB of one header")


@pytest.mark.parametrize("starting_server", [("--api-key", "secret")], indirect=True)
def test_64_mib_in_one_header_line_delay_no_stream(starting_server):
    server = starting_server
    server.wait_until_healthy()
    process = psutil.Process(server.process.pid)
    streams = [Stream(server.url, "secret") for _ in range(STREAMS)]
    while min(len(stream.times) for stream in streams) < 20:
        time.sleep(0.05)
    begin = time.monotonic()
    time.sleep(2)
    memory = process.memory_info().rss
    attack = time.monotonic()
    send_endless_header(server.url)
    time.sleep(1)
    grown = process.memory_info().rss - memory
    end = time.monotonic()
    for stream in streams:
        stream.stop()
    usual = longest_gap(streams, begin, attack)
    assert longest_gap(streams, attack, end) < max(2 * usual, UNNOTICED)
    assert grown < 2 * MEBIBYTE
