"""Hardware whose times can be worked out by hand, and plans of a few requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sarathi.bench.workload.workload import Plan
from sarathi.engine.config import EngineConfig
from sarathi.simulator.cost_model import BatchShape
from sarathi.simulator.setup import Setup


@dataclass(frozen=True)
class ToyCost:
    """So many seconds for an iteration, a token and a cached token, in each stage."""

    iteration: float = 0.01
    token: float = 0.001
    context: float = 0.0
    stage_factors: tuple[float, ...] = (1.0,)
    hop_seconds: float = 0.0
    overhead_seconds: float = 0.0

    @property
    def num_stages(self) -> int:
        return len(self.stage_factors)

    def stages(self, shape: BatchShape) -> Sequence[float]:
        reads = shape.context + sum(n * (start + n / 2) for start, n in shape.chunks)
        whole = self.iteration + self.token * shape.tokens + self.context * reads
        return [factor * whole for factor in self.stage_factors]

    def hop(self, shape: BatchShape) -> float:
        return self.hop_seconds

    def overhead(self, shape: BatchShape) -> float:
        return self.overhead_seconds


def toy_setup(cost: Any = None, *, blocks: int = 1000, **options: Any) -> Setup:
    """One replica, with the paper's scheduler unless `options` differ."""
    replicas = options.pop("replicas", 1)
    router = options.pop("router", "round_robin")
    max_model_len = options.pop("max_model_len", 1000)
    noise = options.pop("noise", None)
    if options.keys().isdisjoint({"token_budget", "tbt_target", "policy"}):
        options["token_budget"] = 32
    config = EngineConfig(**{"in_order_share": 1.0, "min_prefill_share": 0.0, **options})
    return Setup(
        description={"model": "toy", "device": "toy", "policy": config.policy},
        cost=cost or ToyCost(),
        config=config,
        num_blocks=blocks,
        block_size=4,
        max_model_len=max_model_len,
        num_replicas=replicas,
        devices_per_replica=1,
        router=router,
        accuracy="exact",
        noise=noise,
    )


def toy_plan(
    *requests: tuple[float, int, int], warm_up: int = 0, conversations: Sequence[int] = ()
) -> Plan:
    """Requests as arrival, prompt and output tokens, in order; perhaps as turns."""
    columns = list(zip(*requests, strict=True))
    turns = np.zeros(len(requests), np.int64)
    for index, conversation in enumerate(conversations):
        turns[index] = list(conversations[:index]).count(conversation)
    return Plan(
        times=np.array(columns[0], np.float64),
        prompts=np.array(columns[1]),
        outputs=np.array(columns[2]),
        conversations=np.array(conversations or range(len(requests))),
        turns=turns,
        num_warm_up=warm_up,
        measured_seconds=float(columns[0][-1]) or 1.0,
        num_shortened=0,
    )
