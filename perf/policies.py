"""The paper's schedulers on the same server and the same workload: what waits, and for how long?

Requests arrive at random (Poisson) at a rate that a good scheduler sustains. Every policy sees
the same arrivals, prompts and lengths. The six are as the paper has them: strictly first come,
first served, with a fixed token budget where they have one. Last comes the latency budget with its
defaults.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from perf.prompts import text_prompts
from perf.report import rounds
from perf.server import Server
from perf.streams import Stream, open_stream
from sarathi.scheduler import POLICIES

_REQUESTS = 36
_RATE = 1.6  # requests a second
_PROMPT = (100, 2000)  # tokens, log-uniform
_OUTPUT = (32, 160)  # tokens, uniform
_BATCH = 16  # requests that run at the same time: as many as the reservations of orca allow
_BUDGET = 256  # tokens
_TARGET = 100  # milliseconds between tokens
_COMMON = ["--max-batch-size", str(_BATCH), "--no-enable-prefix-caching"]
_AS_PUBLISHED = ["--in-order-share", "1", "--min-prefill-share", "0"]
_TIMEOUT = 300.0  # seconds


@dataclass(frozen=True)
class Arrival:
    at: float  # seconds
    prompt: list[int]
    output: int  # tokens


def workload(seed: int = 0) -> list[Arrival]:
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / _RATE, _REQUESTS))
    low, high = np.log(_PROMPT)
    lengths = np.exp(rng.uniform(low, high, _REQUESTS)).astype(int)
    outputs = rng.integers(*_OUTPUT, _REQUESTS)
    return [
        Arrival(float(time), text_prompts(1, int(length), seed=index)[0], int(output))
        for index, (time, length, output) in enumerate(zip(times, lengths, outputs, strict=True))
    ]


async def play(port: int, arrivals: list[Arrival]) -> list[Stream]:
    """Send every request at its time, without waiting for others (open loop)."""
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def send(arrival: Arrival) -> Stream:
        await asyncio.sleep(began + arrival.at - loop.time())
        stream = await open_stream(port, arrival.prompt, arrival.output)
        await stream.done
        return stream

    playing = asyncio.gather(*(send(arrival) for arrival in arrivals))
    return await asyncio.wait_for(playing, _TIMEOUT)


def figures(arrivals: list[Arrival], streams: list[Stream]) -> list[str]:
    """Return the columns of the table: TTFT, TBT and throughput."""
    first = [stream.arrivals[0] - stream.sent for stream in streams]
    gaps = np.concatenate([np.diff(stream.arrivals) for stream in streams])
    tokens = sum(len(arrival.prompt) + arrival.output for arrival in arrivals)
    seconds = max(s.arrivals[-1] for s in streams) - min(s.sent for s in streams)
    return [
        *(f"{value:.2f} s" for value in np.percentile(first, (50, 99))),
        *(f"{1000 * value:.0f} ms" for value in np.percentile(gaps, (50, 99, 100))),
        f"{tokens / seconds:.0f}/s",
    ]


def rows() -> dict[str, list[str]]:
    """Return the options of `sarathi serve` for each row of the table."""
    options = {}
    for name, policy in POLICIES.items():
        budget = ["--token-budget", str(_BUDGET)] if policy.requires_budget else []
        options[name] = ["--policy", name, *budget, *_AS_PUBLISHED]
    options[f"sarathi, {_TARGET} ms"] = ["--tbt-target", f"{_TARGET}ms"]
    return options


def main() -> None:
    arrivals = workload()
    warm_up = [replace(arrival, at=0.0) for arrival in workload(seed=1)[:4]]
    table = Table(
        title=f"{_REQUESTS} requests at {_RATE} a second, prompts of {_PROMPT[0]} to {_PROMPT[1]} "
        f"tokens, outputs of {_OUTPUT[0]} to {_OUTPUT[1]}, up to {_BATCH} at a time",
        title_justify="left",
        caption=f"The last one has a target of {_TARGET} ms between tokens instead of a budget.",
        caption_justify="left",
        pad_edge=False,
    )
    for column in ("policy", "TTFT P50", "P99", "TBT P50", "P99", "max gap", "tokens"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for name, options in rounds(rows().items(), "one server after the other"):
        with Server([*options, *_COMMON]) as server:
            server.wait_for_token()
            uvloop.run(play(server.port, warm_up))
            table.add_row(name, *figures(arrivals, uvloop.run(play(server.port, arrivals))))
    Console().print(table)


if __name__ == "__main__":
    main()
