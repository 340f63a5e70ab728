"""What simulated hardware did, in figures for people."""

from __future__ import annotations

from collections.abc import Sequence

from sarathi.bench.number_format import number, percent
from sarathi.bench.results import ReplicaUse, Simulation


def stage_shares(replicas: Sequence[ReplicaUse]) -> list[tuple[float, float]]:
    """Of each pipeline stage, over all replicas: how much of the time it was busy, and idle.

    The time is that in which a replica had requests. Idle in it is a bubble, so the two make 1.
    """
    active = sum(use.active for use in replicas)
    if not active:
        return []
    stages = zip(*(zip(use.busy, use.bubbles, strict=True) for use in replicas), strict=True)
    return [
        (sum(busy for busy, _ in stage) / active, sum(idle for _, idle in stage) / active)
        for stage in stages
    ]


def overhead_share(replicas: Sequence[ReplicaUse]) -> float | None:
    """Of the time with requests, in which the engine prepared iterations; None without any."""
    active = sum(use.active for use in replicas)
    return sum(use.overhead for use in replicas) / active if active else None


def kv_shares(replicas: Sequence[ReplicaUse]) -> tuple[float, float] | None:
    """Of the KV blocks: how many were in use on average over the time with requests, and at most.
    None without any such time."""
    active = sum(use.active for use in replicas)
    if not active:
        return None
    mean = sum(use.kv_mean * use.active for use in replicas) / active
    return mean, max(use.kv_max for use in replicas)


def simulation_notes(simulation: Simulation) -> list[str]:
    """Lines below the latencies of a run: how well the hardware was used, and how far to trust it.

    The last is always the accuracy.
    """
    replicas, found = simulation.replicas, []
    shares = stage_shares(replicas)
    for stage, (busy, idle) in enumerate(shares):
        name = f"stage {stage}" if len(shares) > 1 else "devices"
        found.append(
            f"{name}: busy for {percent(busy)} of the time with requests, "
            f"idle (bubbles) for {percent(idle)}"
        )
    overhead, kv = overhead_share(replicas), kv_shares(replicas)
    if overhead is not None:
        found.append(f"the engine prepared iterations for {percent(overhead)} of that time")
    if kv is not None:
        preemptions = sum(use.preemptions for use in replicas)
        found.append(
            f"KV blocks: {percent(kv[0])} in use on average, {percent(kv[1])} at most; "
            f"{preemptions:,} preemptions"
        )
    if simulation.cost_per_million_tokens is not None:
        found.append(
            f"cost: ${number(simulation.cost_per_million_tokens)} a million tokens, prompts "
            "included"
        )
    sampled = sampling_note(simulation)
    return [*found, *([] if sampled is None else [sampled]), f"accuracy: {simulation.accuracy}"]


def sampling_note(simulation: Simulation) -> str | None:
    """None where every request was kept."""
    every = simulation.records_every
    if every <= 1:
        return None
    return f"figures by request show one in {every:,}; percentiles are those of all"
