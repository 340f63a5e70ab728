"""What does the prefix cache gain for prompts with a common prefix, and cost for others?

The same requests are sent to two servers, with and without it, alternately, one at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np
import uvloop

from perf.prompts import random_prompts
from perf.report import Figure, rounds, show
from perf.server import Server
from perf.streams import open_stream

SHARED_TARGET = 0.25  # time to first token with the cache, of that without
DISTINCT_TARGET = 1.03  # the same without a common prefix: only noise
_SYSTEM, _OWN = 1500, 50  # tokens of the part that prompts share, and of the rest
_OUTPUT = 2  # tokens
_ROUNDS = 15
_PATIENCE = 60.0  # seconds
_WARM_UP = 5  # prompts: what is measured then is a cache that is full and has to forget
_OPTIONS = [
    *("--kv-cache-memory", "128MB"),  # less than the prompts that warm up
    # Targets derived by two servers would differ, and their iterations with them.
    *("--token-budget", "256"),
]
_WAYS = {"with": _OPTIONS, "without": [*_OPTIONS, "--no-enable-prefix-caching"]}


async def first_token(port: int, prompt: list[int]) -> float:
    """Seconds from the request to its first token."""
    stream = await open_stream(port, prompt, _OUTPUT)
    await asyncio.wait_for(stream.done, _PATIENCE)
    return stream.arrivals[0] - stream.sent


def in_turns(servers: Mapping[str, Server], prompts: list[list[int]]) -> dict[str, list[float]]:
    """Seconds to the first token of every prompt after those that warm up, by server."""
    seconds: dict[str, list[float]] = {way: [] for way in servers}
    for number, prompt in enumerate(rounds(prompts, "with and without prefix caching in turns")):
        # Who goes first changes, so that neither always follows the other.
        for way in sorted(servers, reverse=bool(number % 2)):
            took = uvloop.run(first_token(servers[way].port, prompt))
            if number >= _WARM_UP:
                seconds[way].append(took)
    return seconds


def main() -> None:
    [system] = random_prompts(1, _SYSTEM)
    shared = [[*system, *own] for own in random_prompts(_WARM_UP + _ROUNDS, _OWN, seed=1)]
    distinct = random_prompts(_WARM_UP + _ROUNDS, _SYSTEM + _OWN, seed=2)
    with Server(_WAYS["with"]) as cached, Server(_WAYS["without"]) as plain:
        servers = {"with": cached, "without": plain}
        for server in servers.values():
            server.wait_for_token()
        nothing_shared = in_turns(servers, distinct)
        before = cached.stats()
        system_shared = in_turns(servers, shared)
        after = cached.stats()
    hits = after["cached_tokens"] - before["cached_tokens"]
    asked = after["prompt_tokens"] - before["prompt_tokens"]
    show(
        f"Prefix caching: prompts of {_SYSTEM} + {_OWN} tokens, time to first token",
        [
            *_figures("first part shared", system_shared, SHARED_TARGET),
            Figure("  tokens found in the cache", hits / asked, "%"),
            *_figures("nothing shared", nothing_shared, DISTINCT_TARGET),
        ],
    )


def _figures(name: str, seconds: Mapping[str, list[float]], target: float) -> list[Figure]:
    # Each round's own ratio: what slows down both sides of it does not count.
    ratio = np.median(np.array(seconds["with"]) / np.array(seconds["without"]))
    return [
        Figure(f"{name}: without the cache", 1000 * float(np.median(seconds["without"])), "ms"),
        Figure("  with it", 1000 * float(np.median(seconds["with"])), "ms"),
        Figure("  ratio", float(ratio), "", target),
    ]


if __name__ == "__main__":
    main()
