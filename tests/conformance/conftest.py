"""A whole server, by its URL: `SARATHI_URL` (with `SARATHI_API_KEY`) or one started here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

START_SECONDS = 120.0


class StartedServer:
    """The real command, on a free port."""

    def __init__(self, log: Path, *more: str) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        command = [sys.executable, "-m", "sarathi.cli.main", "serve", "smollm2-135m"]
        # In f32, so that outputs do not depend on what else is in the batch.
        options = ["--port", str(port), "--max-model-len", "2048", "--precision", "f32"]
        options += ["--kv-cache-memory", "512MiB", *more]
        with log.open("wb") as output:
            self.process = subprocess.Popen([*command, *options], stdout=output, stderr=output)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def get_when_up(self, path: str) -> httpx.Response:
        """The first answer, which comes before the model is loaded."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            self.check()
            try:
                return httpx.get(self.url + path, timeout=10)
            except httpx.TransportError:
                assert time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.02)

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self.get_when_up("/health").status_code != 200:
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)

    def check(self) -> None:
        assert self.process.poll() is None, self._log.read_text()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if url := os.environ.get("SARATHI_URL"):
        yield url.rstrip("/")
        return
    server = StartedServer(tmp_path_factory.mktemp("server") / "log.txt")
    try:
        server.wait_until_healthy()
        yield server.url
    finally:
        server.stop()


@pytest.fixture
def starting_server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[StartedServer]:
    """A server of its own, still loading; the parameter has more options."""
    server = StartedServer(tmp_path / "log.txt", *getattr(request, "param", ()))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def api_key() -> str:
    return os.environ.get("SARATHI_API_KEY", "none")


@pytest.fixture
def http(server_url: str, api_key: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {api_key}"}
    with httpx.Client(base_url=server_url, headers=headers, timeout=120) as client:
        yield client


@pytest.fixture
def client(server_url: str, api_key: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server_url}/v1", api_key=api_key, max_retries=0) as one:
        yield one


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


@pytest.fixture
def idle(http: httpx.Client) -> Iterator[None]:
    """Asserts that a test has left nothing behind in the engine."""
    yield
    # Far less than what the abandoned requests would take to run to their end.
    deadline = time.monotonic() + 6
    while True:
        stats = http.get("/stats").json()
        rest = (stats["running"], stats["waiting"], stats["total_blocks"] - stats["free_blocks"])
        if rest == (0, 0, 0):
            return
        assert time.monotonic() < deadline, stats
        time.sleep(0.05)
