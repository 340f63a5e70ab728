"""Another tool measures the same requests to the same server, and finds the same.

The other tool is guidellm (of version 0.8), best kept in an environment of its own. The variable
`SARATHI_GUIDELLM` is the path of its command.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import uvloop

from sarathi.bench.client.endpoint import Call, Dialect, Endpoint
from sarathi.bench.client.open_loop import play
from sarathi.telemetry import RequestRecord, distribution, summarise
from tests.bench.scripted_replies import Received, Reply, Tokens
from tests.bench.scripted_server import MODEL, ScriptedServer

WITHIN = 0.05
RATE = 10.0  # requests per second
# An odd number: of an even one, guidellm may take the upper of the two values in the middle and we
# take the lower.
NUM_REQUESTS = 61
TIMEOUT = 120  # seconds
# Nothing is fetched; one process does for this rate; the server is on this machine.
SETTINGS = {"HF_HUB_OFFLINE": "1", "GUIDELLM__MAX_WORKER_PROCESSES": "1", "NO_PROXY": "*"}


@dataclass(frozen=True)
class Medians:
    """Seconds. guidellm's inter-token latency is the mean gap of a request, as often as it has
    gaps; it knows no single gap."""

    ttft: float
    mean_gap: float

    @classmethod
    def of(cls, records: Sequence[RequestRecord]) -> Medians:
        means = [[sum(gaps) / len(gaps)] * len(gaps) for gaps in (r.gaps for r in records)]
        return cls(known(summarise(records).ttft.p50), known(distribution(means).p50))

    @classmethod
    def told_by_guidellm(cls, metrics: dict[str, Any]) -> Medians:
        names = ("time_to_first_token_ms", "inter_token_latency_ms")
        return cls(*(metrics[name]["successful"]["median"] / 1000 for name in names))

    def agrees_with(self, other: Medians) -> bool:
        return close(self.ttft, other.ttft) and close(self.mean_gap, other.mean_gap)


def known(median: float | None) -> float:
    assert median is not None
    return median


def close(value: float, other: float) -> bool:
    return abs(value - other) <= WITHIN * other


@pytest.fixture
def command() -> str:
    path = os.environ.get("SARATHI_GUIDELLM")
    if not path:
        pytest.skip("SARATHI_GUIDELLM is not set: the path of the command guidellm")
    return path


def guidellm(command: str, url: str, calls: Sequence[Call], folder: Path) -> Medians:
    data, config, report = (folder / name for name in ("data.jsonl", "config.json", "report.json"))
    rows = ({"prompt": call.prompt, "output_tokens_count": call.output_tokens} for call in calls)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {
        "backend": {
            "kind": "openai_http",
            "target": url,
            "model": MODEL,
            "request_format": "/v1/completions",
            "extras": {"body": {"temperature": 0}},
        },
        "data": [{"kind": "json_file", "path": str(data)}],
        "profile": {"kind": "constant", "rate": RATE},
        "constraints": [{"kind": "max_requests", "count": len(calls)}],
        "outputs": [{"kind": "json", "path": str(report)}],
    }
    config.write_text(json.dumps({"spec": spec}))
    done = subprocess.run(
        [command, "run", "--config", str(config), "--disable-console"],
        cwd=folder,
        env={**os.environ, **SETTINGS},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = json.loads(report.read_text())["perf"]
    assert len(run["requests"]["successful"]) == len(calls)
    return Medians.told_by_guidellm(run["metrics"])


def ours(url: str, calls: Sequence[Call]) -> list[RequestRecord]:
    endpoint = Endpoint.parse(url, model=MODEL)
    records = uvloop.run(play(endpoint, Dialect(), calls, timeout=10)).records
    assert [record.failure for record in records] == [None] * len(calls)
    return records


def times(prompt: str, tokens: int) -> list[float]:
    """Of the tokens, in seconds after the request. One gap in four is five times the others."""
    rng = random.Random(prompt)
    ttft, gap = rng.uniform(0.1, 0.5), rng.uniform(0.02, 0.06)
    gaps = (gap * rng.choice((0.5, 0.5, 0.5, 2.5)) for _ in range(tokens - 1))
    return list(accumulate(gaps, initial=ttft))


def script(request: Received) -> Reply:
    return Reply([Tokens(at) for at in times(request.prompt, request.tokens)])


def scripted(call: Call) -> RequestRecord:
    """What a client without any delay would see."""
    tokens = times(call.prompt, call.output_tokens)
    return RequestRecord(
        arrival=0,
        prompt_tokens=call.prompt_tokens,
        output_tokens=call.output_tokens,
        tokens=tokens,
        end=tokens[-1],
    )


@pytest.mark.slow
def test_guidellm_and_we_find_the_same_medians_which_are_the_truth(
    command: str, tmp_path: Path
) -> None:
    rng = random.Random(0)
    calls = [
        Call(i / RATE, f"This is request {i}.", 4, rng.randint(8, 30)) for i in range(NUM_REQUESTS)
    ]
    with ScriptedServer(script) as server:
        theirs = guidellm(command, server.url, calls, tmp_path)
        records = ours(server.url, calls)
    bodies = [json.dumps(request.body, sort_keys=True) for request in server.requests]
    assert sorted(bodies[:NUM_REQUESTS]) == sorted(bodies[NUM_REQUESTS:])

    expected = [scripted(call) for call in calls]
    mine, truth = Medians.of(records), Medians.of(expected)
    tbt, true_tbt = (known(summarise(some).tbt.p50) for some in (records, expected))
    print(f"\nguidellm: {theirs}\nours:     {mine}, TBT {tbt}\ntruth:    {truth}, TBT {true_tbt}")
    assert theirs.agrees_with(truth)
    assert mine.agrees_with(truth)
    assert mine.agrees_with(theirs)
    # The two notions must not be taken for each other: here one is nearly twice the other.
    assert close(tbt, true_tbt)
    assert tbt < 0.6 * mine.mean_gap
