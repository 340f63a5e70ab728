"""When an engine process dies, its requests are resumed without a visible difference."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from tests.conformance.started_server import StartedServer

TOKENS = 60
# Sampling is truncated: recomputed logits differ in their last bits, which could change the choice
# between two of the very many tokens with next to no probability.
REQUESTS: list[dict[str, Any]] = [
    {"prompt": "Once upon a time", "temperature": 0, "logprobs": 2, "stream": True},
    {"prompt": "The sea is", "temperature": 0.8, "top_k": 20, "seed": 5, "n": 2},
    {"prompt": "Animals:", "temperature": 0.8, "top_p": 0.8, "seed": 1, "presence_penalty": 1.0},
    {"prompt": "In the beginning", "temperature": 0, "min_tokens": 50, "stream": True},
]
GENERATIONS = 5


def ask(server: StartedServer, request: dict[str, Any]) -> list[Any]:
    """Text, log probabilities and finish reason of each choice."""
    body = {"max_tokens": TOKENS, "ignore_eos": True, **request}
    url = f"{server.url}/v1/completions"
    if not request.get("stream"):
        choices = httpx.post(url, json=body, timeout=120).raise_for_status().json()["choices"]
        return [(one["text"], one["logprobs"], one["finish_reason"]) for one in choices]
    text, logprobs, reason = "", [], None
    with httpx.stream("POST", url, json=body, timeout=120) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                [choice] = json.loads(line[6:])["choices"]
                text += choice["text"]
                logprobs += (choice["logprobs"] or {}).get("token_logprobs", [])
                reason = choice["finish_reason"]
    return [(text, logprobs, reason)]


def stats(server: StartedServer) -> dict[str, Any]:
    return httpx.get(f"{server.url}/stats", timeout=30).raise_for_status().json()


def wait(server: StartedServer, condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, server.log
        time.sleep(0.02)


def engines(server: StartedServer) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def tokens_generated(server: StartedServer) -> float:
    text = httpx.get(f"{server.url}/metrics", timeout=30).text
    [line] = [line for line in text.splitlines() if line.startswith("sarathi_output_tokens_total ")]
    return float(line.split()[1])


@pytest.mark.parametrize(
    ("starting_server", "replicas", "signal"),
    [((), 1, "terminate"), (("--replicas", "2"), 2, "kill")],
    indirect=["starting_server"],
)
def test_a_killed_engine_changes_no_output_and_none_outlives_the_server(
    starting_server: StartedServer, replicas: int, signal: str
) -> None:
    server = starting_server
    server.wait_until_healthy()
    wait(server, lambda: stats(server)["replicas"]["ready"] == replicas)
    with ThreadPoolExecutor(len(REQUESTS)) as users:
        undisturbed = list(users.map(lambda request: ask(server, request), REQUESTS))
        before = tokens_generated(server)
        asked = [users.submit(ask, server, request) for request in REQUESTS]
        wait(server, lambda: stats(server)["running"] == GENERATIONS)
        wait(server, lambda: tokens_generated(server) >= before + 5 * GENERATIONS)
        killed = engines(server)[-1]
        killed.kill()
        answers = [answer.result() for answer in asked]
    assert not any(choice[0] == "" for answer in answers for choice in answer)
    for request, answer, expected in zip(REQUESTS, answers, undisturbed, strict=True):
        for (text, logprobs, reason), (whole, all_logprobs, end) in zip(
            answer, expected, strict=True
        ):
            assert (text, reason) == (whole, end), request
            if logprobs:
                assert logprobs == pytest.approx(all_logprobs, abs=1e-3)
    assert tokens_generated(server) == before + TOKENS * GENERATIONS
    wait(server, lambda: stats(server)["replicas"]["ready"] == replicas)
    now = stats(server)
    assert now["replica_restarts"] == 1
    assert 1 <= now["requests_resumed"] <= GENERATIONS
    if replicas == 1:
        assert now["requests_resumed"] == GENERATIONS
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"

    alive = engines(server)
    assert len(alive) == replicas
    getattr(server.process, signal)()
    server.process.wait(20)
    wait(server, lambda: all(map(has_ended, alive)), 10)
