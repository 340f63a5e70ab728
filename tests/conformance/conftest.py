"""A whole server, by its URL: `SARATHI_URL` (with `SARATHI_API_KEY`) or one started here."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.conformance.started_server import StartedServer


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
