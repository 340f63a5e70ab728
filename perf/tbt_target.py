"""Does the latency budget keep its target, and what does that cost in prompt throughput?

Sixteen requests decode without end while prompts of 500 to 4000 tokens arrive one after the
other: as soon as one has its first token, the next is sent. The gaps of the sixteen requests and
the prompt tokens per second are compared, for each target and the best fixed budget that meets it.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from perf.prompts import random_prompts, text_prompts
from perf.report import rounds
from perf.server import Server
from perf.streams import Stream, open_stream

TARGETS = (0.060, 0.100, 0.200)  # seconds
BUDGETS = (48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)  # tokens
TOLERANCE = 1.15  # of the target, that the P99 of the gaps may reach
THROUGHPUT = 0.9  # of the best fixed budget's
_USERS = 16
_USER_PROMPT, _USER_OUTPUT = 50, 4000  # tokens; longer than the measurement
_PROMPT = (500, 4000)  # tokens, log-uniform
_SECONDS = 20.0  # after the first prompt, until the end of the last one that was begun
_PATIENCE = 180.0  # seconds


@dataclass(frozen=True)
class Outcome:
    p50: float  # seconds between tokens
    p99: float
    longest: float
    throughput: float  # prompt tokens a second
    ttft: float  # seconds to the first token of a prompt of 1000 tokens, in proportion


async def measure(port: int, seconds: float = _SECONDS) -> Outcome:
    loop = asyncio.get_running_loop()
    users = [
        await open_stream(port, prompt, _USER_OUTPUT)
        for prompt in text_prompts(_USERS, _USER_PROMPT)
    ]
    while not all(user.arrivals for user in users):
        await asyncio.sleep(0.05)
    computed: list[tuple[float, int]] = []  # end of each prompt, and its tokens
    rng = np.random.default_rng(2)
    first: list[float] = []
    # The first prompt warms up.
    while not computed or loop.time() < computed[0][0] + seconds:
        length = int(np.exp(rng.uniform(*np.log(_PROMPT))))
        [prompt] = random_prompts(1, length, seed=int(rng.integers(1 << 30)))
        sent = loop.time()
        stream = await open_stream(port, prompt, 1)
        await stream.done
        computed.append((loop.time(), length))
        first.append((loop.time() - sent) / length)
    took = computed[-1][0] - computed[0][0]
    gaps = np.concatenate([_gaps(user, took) for user in users])
    for user in users:
        user.close()
    tokens = sum(length for _, length in computed[1:])
    p50, p99 = np.percentile(gaps, (50, 99))
    return Outcome(
        float(p50),
        float(p99),
        float(gaps.max()),
        tokens / took,
        1000 * float(np.median(first)),
    )


def _gaps(user: Stream, seconds: float) -> Sequence[float]:
    """Of the last so many seconds."""
    arrivals = np.array(user.arrivals)
    return np.diff(arrivals[arrivals > arrivals[-1] - seconds])


def serve(options: Sequence[str]) -> Outcome:
    with Server([*options, "--no-enable-prefix-caching"]) as server:
        server.wait_for_token()
        return uvloop.run(asyncio.wait_for(measure(server.port), _PATIENCE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--targets", type=float, nargs="+", default=TARGETS, help="in seconds")
    args = parser.parse_args()
    runs = [("--token-budget", str(budget)) for budget in args.budgets]
    # In turns, so that a machine that changes its speed does not favour one kind.
    step = max(1, len(runs) // (len(args.targets) + 1))
    for index, target in enumerate(args.targets):
        runs.insert((index + 1) * step + index, ("--tbt-target", f"{1000 * target:g}ms"))
    outcomes = {run: serve(run) for run in rounds(runs, "one server after the other")}
    _show(outcomes)
    for target in args.targets:
        _judge(target, outcomes)


def _show(outcomes: dict[tuple[str, str], Outcome]) -> None:
    table = Table(
        title=f"{_USERS} users decode while prompts of {_PROMPT[0]} to {_PROMPT[1]} tokens come",
        title_justify="left",
    )
    for column in ("budget", "TBT P50", "P99", "max gap", "prompt tokens", "TTFT of 1000 tokens"):
        table.add_column(column, justify="left" if column == "budget" else "right")
    for (flag, value), outcome in outcomes.items():
        table.add_row(
            f"{flag} {value}",
            *(f"{1000 * gap:.0f} ms" for gap in (outcome.p50, outcome.p99, outcome.longest)),
            f"{outcome.throughput:.0f}/s",
            f"{outcome.ttft:.2f} s",
        )
    Console().print(table)


def _judge(target: float, outcomes: dict[tuple[str, str], Outcome]) -> None:
    own = outcomes["--tbt-target", f"{1000 * target:g}ms"]
    fixed = {
        value: outcome.throughput
        for (flag, value), outcome in outcomes.items()
        if flag == "--token-budget" and outcome.p99 <= TOLERANCE * target
    }
    late = own.p99 / target
    console = Console()
    console.print(
        f"target {1000 * target:.0f} ms: P99 is {late:.2f} of it "
        f"({'met' if late <= TOLERANCE else 'NOT met'}: at most {TOLERANCE})"
    )
    if not fixed:
        console.print("  no fixed budget meets it")
        return
    best = max(fixed, key=lambda value: fixed[value])
    share = own.throughput / fixed[best]
    console.print(
        f"  prompt throughput is {share:.2f} of that with the best fixed budget that meets it, "
        f"{best} ({'met' if share >= THROUGHPUT else 'NOT met'}: at least {THROUGHPUT})"
    )


if __name__ == "__main__":
    main()
