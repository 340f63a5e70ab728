"""Simulated runs with figures that can be checked by hand."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from sarathi.bench.results import ReplicaUse, Run, Simulation


def use(
    active: float = 100.0,
    busy: Sequence[float] = (80.0, 60.0),
    overhead: float = 4.0,
    preemptions: int = 1,
    kv_mean: float = 0.5,
    kv_max: float = 0.75,
) -> ReplicaUse:
    return ReplicaUse(
        iterations=1000,
        tokens=50_000,
        decodes=20_000,
        preemptions=preemptions,
        active=active,
        busy=list(busy),
        bubbles=[active - seconds for seconds in busy],
        overhead=overhead,
        kv_mean=kv_mean,
        kv_max=kv_max,
    )


def simulated(run: Run, *replicas: ReplicaUse, cost: float | None = 0.25, every: int = 1) -> Run:
    found = list(replicas or (use(),))
    return replace(
        run,
        simulation=Simulation(
            deployment={"model": "toy", "device": "a100"},
            num_devices=2 * len(found),
            replicas=found,
            cost_per_million_tokens=cost,
            records_every=every,
            accuracy="off by 3% in the median",
        ),
    )
