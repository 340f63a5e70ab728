"""The time of the scheduler per iteration, and its dependence on the number of waiting requests.

No model: batches are completed at once. Requests decode at contexts of some hundred tokens, and
behind them prompts wait for a slot.
"""

from __future__ import annotations

import time

import numpy as np

from perf.report import Figure, rounds, show
from sarathi.scheduler import (
    ORDERS,
    BlockPool,
    LatencyBudget,
    LatencyModel,
    Request,
    Scheduler,
    SchedulingParams,
    StopCriteria,
    Work,
)

# (running, waiting): seconds that schedule() and complete() may take together.
TARGETS = {(64, 0): 150e-6, (512, 0): None, (512, 10_000): 1e-3}
_ITERATIONS = 300
_PROMPT, _OUTPUT = 400, 1000  # tokens
_TENANTS = 100


def model() -> LatencyModel:
    """Return a model roughly like that of a two-core machine."""
    seconds = {(1, 0): 0.010, (64, 0): 0.045, (256, 0): 0.11, (512, 0): 0.22, (256, 1000): 0.13}
    return LatencyModel.fit(
        [
            (Work(tokens, tokens * (context + tokens / 2), 0, 1), time)
            for (tokens, context), time in seconds.items()
        ]
        + [(Work(32, 0.0, 32 * context, 32), 0.028 + context * 1e-5) for context in (0, 1000)]
    )


def scheduler(running: int, waiting: int, order: str, fair: bool) -> Scheduler:
    """Return a scheduler with `running` decodes and `waiting` requests without a slot."""
    latency_model = model()
    result = Scheduler(
        BlockPool(running * 50, block_size=32),
        LatencyBudget(60.0, latency_model),  # prompts of the warm-up need few iterations
        max_batch_size=running,
        max_model_len=_PROMPT + _OUTPUT,
        order=ORDERS[order](latency_model, 1e9),
        fair=fair,
        in_order_share=0.5,
        latency_model=latency_model,
    )
    for name in range(running + waiting):
        prompt = range(name, name + _PROMPT)
        params = SchedulingParams(tenant=str(name % _TENANTS))
        result.add(Request(name, prompt, StopCriteria(_OUTPUT), float(name), params))
    while len(result.running.decodes) < running:
        iterate(result)
    return result


def iterate(scheduled: Scheduler) -> float:
    """Run an iteration and return its seconds."""
    now = time.perf_counter()
    batch = scheduled.schedule(now)
    assert batch is not None
    tokens = [7] * len(batch.sampling)
    between = time.perf_counter()
    scheduled.complete(batch, tokens, between)
    after = time.perf_counter()
    return after - now


def main() -> None:
    figures = []
    kinds = [("fcfs", False), ("slack", True)]
    runs = [(kind, size) for kind in kinds for size in TARGETS]
    for (order, fair), (running, waiting) in rounds(runs, "scheduler"):
        scheduled = scheduler(running, waiting, order, fair)
        seconds = float(np.median([iterate(scheduled) for _ in range(_ITERATIONS)]))
        name = f"{running} running, {waiting} waiting, {order}{', fair by tenant' if fair else ''}"
        target = TARGETS[running, waiting]
        figures.append(Figure(name, 1e6 * seconds, "us", target and 1e6 * target))
    show("schedule() and complete() of one iteration", figures)


if __name__ == "__main__":
    main()
