"""What does HTTP cost? 32 streaming users against offline generation of the same requests.

Three processes share the same cores: the server with its engine, `LLM.generate` in a
process of its own, and this one, the client, which does as little as it can (`streams.py`).
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import time
from multiprocessing.connection import Connection

import numpy as np
import uvloop

from perf.prompts import random_prompts
from perf.report import MODEL, Figure, rounds, show
from perf.server import Server
from perf.streams import open_stream
from sarathi import LLM, SamplingParams

TARGET = 0.90  # of the offline tokens per second
_USERS, _PROMPT, _OUTPUT = 32, 100, 128
_ROUNDS = 7
_BUDGET = 256  # tokens: targets derived by two engines would differ, and their iterations with them
_TIMEOUT = 120.0  # seconds for a round


def offline(pipe: Connection) -> None:
    """Generate the prompts that come through the pipe, and send back the seconds."""
    llm = LLM(MODEL, token_budget=_BUDGET)
    params = SamplingParams(max_tokens=_OUTPUT, temperature=0, ignore_eos=True)
    while prompts := pipe.recv():
        start = time.perf_counter()
        llm.generate(prompts, params)
        pipe.send(time.perf_counter() - start)


async def stream_all(port: int, prompts: list[list[int]]) -> float:
    """Return the seconds from the first request to the end of the last stream."""
    start = time.perf_counter()
    streams = [await open_stream(port, prompt, _OUTPUT) for prompt in prompts]
    await asyncio.wait_for(asyncio.gather(*(stream.done for stream in streams)), _TIMEOUT)
    return time.perf_counter() - start


def main() -> None:
    """Print the throughput of both."""
    spawn = multiprocessing.get_context("spawn")
    pipe, worker_pipe = spawn.Pipe()
    worker = spawn.Process(target=offline, args=(worker_pipe,), daemon=True)
    worker.start()
    http_seconds, offline_seconds, client_seconds = [], [], []
    with Server(["--token-budget", str(_BUDGET)]) as server:
        server.wait_for_token()
        for number in rounds(range(_ROUNDS + 1), "http and offline alternately"):
            prompts = random_prompts(_USERS, _PROMPT, seed=number)
            cpu_start = _cpu_seconds()
            streamed = uvloop.run(stream_all(server.port, prompts))
            used = _cpu_seconds() - cpu_start
            pipe.send(prompts)
            offline_result = pipe.recv()
            if number:  # the first warms up
                http_seconds.append(streamed)
                offline_seconds.append(offline_result)
                client_seconds.append(used)
    pipe.send(None)
    worker.join()
    tokens = _USERS * _OUTPUT
    ratio = np.median(np.array(offline_seconds) / np.array(http_seconds))
    show(
        f"HTTP against offline: {_USERS} users, {_PROMPT} + {_OUTPUT} tokens each",
        [
            Figure("tokens per second over HTTP", tokens / np.median(http_seconds)),
            Figure("tokens per second offline", tokens / np.median(offline_seconds)),
            Figure("ratio", float(ratio), "", TARGET, "at least"),
            Figure(
                "processor time of the client, of the elapsed time",
                float(np.median(client_seconds) / np.median(http_seconds)),
                "%",
            ),
        ],
        "The client has no core of its own.",
    )


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
