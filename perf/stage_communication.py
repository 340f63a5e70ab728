"""How much of an iteration do two stages spend on communication?

One request at a time, so that one iteration is under way: from when the engine hands its step to
the stages until it has the logits, less what both computed. That is the step on its way to the
other process, the hidden states on their way back, and the threads that wake up for them. The
single process shows what handing over a step costs in any case.
"""

from __future__ import annotations

import http.client
import json
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np

from perf.prompts import random_prompts
from perf.report import MODEL, Figure, rounds, show
from perf.server import Server
from sarathi.telemetry.iteration_log import IterationLine

TARGET = 2.0  # milliseconds an iteration
_PROMPT = 250  # tokens, computed at once
_OUTPUT = 100
_REQUESTS = 10
_WAYS = {
    "one process": [],
    "--pp 2": ["--pp", "2"],
    "--ray --pp 2": ["--ray", "--pp", "2"],
}
_OPTIONS = ["--precision", "f32", "--threads", "1", "--token-budget", "256"]
_OPTIONS += ["--kv-cache-memory", "256MiB"]


def measure(options: Sequence[str]) -> list[IterationLine]:
    """The iterations of some requests, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        with Server([*_OPTIONS, *options, "--iteration-log", str(log)]) as server:
            server.wait_for_token()
            warm = int(server.stats()["iterations"])
            for prompt in random_prompts(_REQUESTS, _PROMPT):
                _complete(server.port, prompt)
        lines = [
            msgspec.json.decode(line, type=IterationLine) for line in log.read_bytes().splitlines()
        ]
    return [line for line in lines if line.iteration > warm]


def communication(line: IterationLine) -> float:
    """Milliseconds."""
    return 1e3 * (line.parts["execute"] - sum(stage.busy for stage in line.stages))


def main() -> None:
    figures: list[Figure] = []
    ways = {way: o for way, o in _WAYS.items() if "--ray" not in o or find_spec("ray")}
    for way, options in rounds(ways.items(), "starting servers", len(ways)):
        lines = measure(options)
        target = TARGET if options else None
        for kind, some in (
            ("a decode", [line for line in lines if not line.prompts]),
            (f"{_PROMPT} prompt tokens", [line for line in lines if line.prompts]),
        ):
            times = [communication(line) for line in some]
            name = f"{way}, {kind}"
            figures.append(Figure(f"{name}, median", float(np.median(times)), "ms", target))
            figures.append(Figure(f"{name}, P90", float(np.quantile(times, 0.9)), "ms"))
    show(
        "Communication of two stages, an iteration",
        figures,
        f"{MODEL} in f32, a thread each; computing itself not counted",
    )


def _complete(port: int, prompt: list[int]) -> None:
    fields = {"prompt": prompt, "max_tokens": _OUTPUT, "temperature": 0, "ignore_eos": True}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(fields), headers)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise RuntimeError(body.decode())
    finally:
        connection.close()


if __name__ == "__main__":
    main()
