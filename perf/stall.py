"""The point of chunked prefill: does a long prompt stall the requests that are decoding?

One client streams a long answer. Then another one sends a long prompt. A server is started with
each token budget; the largest computes the whole prompt in one iteration.
"""

from __future__ import annotations

import asyncio
import itertools

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from perf.prompts import random_prompts, text_prompts
from perf.report import rounds
from perf.server import Server
from perf.streams import open_stream

BUDGETS = (128, 256, 512, 8192)
_PROMPT = 6000  # tokens, of the second client
_BEFORE = 1.0  # seconds that the first client streams alone
_ROUNDS = 3
_TIMEOUT = 120.0  # seconds


async def measure_stall(port: int, seed: int) -> tuple[list[float], float]:
    """Return the first client's gaps while the second waits for its first token, and that TTFT."""
    [short] = text_prompts(1, 20, seed)
    [long] = random_prompts(1, _PROMPT, seed)
    first = await open_stream(port, short, 2000)
    await asyncio.sleep(_BEFORE)
    second = await open_stream(port, long, 8)
    await asyncio.wait_for(second.done, _TIMEOUT)
    first.close()  # which cancels the remaining tokens
    answered = second.arrivals[0]
    # The gap that the prompt's last iteration causes ends a little after the second's token.
    end = min((t for t in first.arrivals if t > answered), default=answered)
    arrivals = [t for t in first.arrivals if t <= end]
    gaps = [b - a for a, b in itertools.pairwise(arrivals) if b > second.sent]
    return gaps, answered - second.sent


def main() -> None:
    """Print the gaps for each token budget."""
    table = Table(
        title=f"A prompt of {_PROMPT} tokens beside a running stream",
        title_justify="left",
        caption="Milliseconds between the tokens of the first client; medians of "
        f"{_ROUNDS} rounds. The target: the longest gap of budget {BUDGETS[0]} is a small "
        f"fraction (at most 1/4) of that of {BUDGETS[-1]}.",
        caption_justify="left",
    )
    for column in ("token budget", "longest gap", "median gap", "gaps", "second's first token"):
        table.add_column(column, justify="right")
    longest: dict[int, float] = {}
    for budget in rounds(BUDGETS, "a long prompt beside a stream"):
        with Server(["--token-budget", str(budget)]) as server:
            server.wait_for_token()
            uvloop.run(measure_stall(server.port, 0))  # warms up
            results = [
                uvloop.run(measure_stall(server.port, seed)) for seed in range(1, _ROUNDS + 1)
            ]
        longest[budget] = float(np.median([max(gaps) for gaps, _ in results]))
        table.add_row(
            str(budget),
            f"{1000 * longest[budget]:.0f} ms",
            f"{1000 * np.median([gap for gaps, _ in results for gap in gaps]):.0f} ms",
            f"{np.median([len(gaps) for gaps, _ in results]):.0f}",
            f"{np.median([ttft for _, ttft in results]):.2f} s",
        )
    console = Console()
    console.print(table)
    share = longest[BUDGETS[0]] / longest[BUDGETS[-1]]
    verdict = "met" if share <= 0.25 else "NOT met"
    console.print(f"longest gap {BUDGETS[0]} / {BUDGETS[-1]}: {share:.3f} ({verdict})")


if __name__ == "__main__":
    main()
