"""Runs each script of `scripts/` with its client, unchanged, against a real server."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.clients import environments
from tests.conformance.started_server import StartedServer

SCRIPTS = Path(__file__).with_name("scripts")
TIMEOUT = 240  # seconds
CLIENTS = [
    ("sdks", "openai_chat"),
    ("sdks", "openai_responses"),
    ("sdks", "anthropic_messages"),
    ("sdks", "langchain_chat"),
    ("sdks", "agents_loop"),
    ("sdks", "pydantic_ai_output"),
    ("sdks", "ollama_chat"),
    ("litellm", "litellm_completion"),
    ("litellm", "instructor_modes"),
    ("lm-eval", "lm_eval_tasks"),
    ("guidellm", "guidellm_benchmark"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartedServer]:
    one = StartedServer(tmp_path_factory.mktemp("server") / "log.txt", "--max-model-len", "4096")
    try:
        one.wait_until_healthy()
        yield one
    finally:
        one.stop()


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, server: StartedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[subprocess.CompletedProcess[str]]]]:
    """The selected scripts, two at a time: mostly, one imports packages while the other waits."""

    def run(python: Path, script: str) -> subprocess.CompletedProcess[str]:
        command = [str(python), str(SCRIPTS / f"{script}.py"), server.url]
        folder = tmp_path_factory.mktemp(script)
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT)

    items = [item for item in request.session.items if item.path == request.path]
    names = {
        item.callspec.params["script"]
        for item in items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
    }
    with ThreadPoolExecutor(2) as pool:
        yield {
            script: pool.submit(run, python, script)
            for environment, script in CLIENTS
            if script in names and (python := environments.python(environment)) is not None
        }


def test_every_script_is_run() -> None:
    assert {path.stem for path in SCRIPTS.glob("*.py")} == {script for _, script in CLIENTS}


@pytest.mark.slow
@pytest.mark.parametrize(("environment", "script"), CLIENTS, ids=[script for _, script in CLIENTS])
def test_a_client_runs_unchanged(
    request: pytest.FixtureRequest, environment: str, script: str
) -> None:
    if environments.python(environment) is None:
        pytest.skip(f"the environment {environment} is not installed")
    done = request.getfixturevalue("runs")[script].result()
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
