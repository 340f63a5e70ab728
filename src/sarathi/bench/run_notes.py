"""What a reader must know beside the latencies of runs, as sentences."""

from __future__ import annotations

from collections.abc import Sequence

from sarathi.bench.number_format import milliseconds, number, percent
from sarathi.bench.results import ReplicaUse, Run, Simulation
from sarathi.telemetry import RequestRecord


def run_notes(run: Run) -> list[str]:
    """Return everything to be printed below the latencies of a run."""
    summary, found = run.summary, []
    if summary.goodput is not None and summary.attainment is not None:
        found.append(
            f"goodput: {summary.goodput:.3g} requests a second, "
            f"{100 * summary.attainment:.1f} % of all, met their targets"
        )
    if summary.failures:
        kinds = ", ".join(f"{count} {kind}" for kind, count in summary.failures.items())
        # Where the records hold one request of many, it may be that none of them failed.
        detail = next((one.detail for one in run.records if one.failure is not None), None)
        found.append(f"failed: {kinds}" + (f" (the first: {detail})" if detail else ""))
    if run.num_shortened:
        found.append(f"{run.num_shortened} requests were shortened to the server's context")
    if any(record.estimated for record in run.records):
        found.append(
            "the server does not count the tokens of each event: times of tokens are estimated"
        )
    found += filter(None, (short_answers([run]), cached_prompts([run])))
    if run.simulation is None:
        found.append(
            f"the client was late by {milliseconds(run.lag.p50)} at P50, "
            f"{milliseconds(run.lag.p99)} at P99"
        )
    else:
        found += simulation_notes(run.simulation)
    if run.stopped is not None:
        found.append(run.stopped)
    return found


def short_answers(runs: Sequence[Run]) -> str | None:
    """Return a warning where complete answers are shorter than asked for."""
    complete = _complete(runs)
    asked = sum(record.output_tokens for record in complete)
    received = sum(min(len(record.tokens), record.output_tokens) for record in complete)
    return f"answers had {received:,} of {asked:,} tokens asked for" if received < asked else None


def cached_prompts(runs: Sequence[Run]) -> str | None:
    """Return a warning where the server reports cached prompt tokens."""
    complete = _complete(runs)
    cached = sum(record.cached_tokens for record in complete)
    if not cached:
        return None
    share = cached / sum(record.prompt_tokens for record in complete)
    return f"{percent(share)} of the prompt tokens came from the server's prefix cache"


def has_conversations(run: Run) -> bool:
    """Whether the prompts of a run share prefixes on purpose."""
    return "turns" in run.workload


def _complete(runs: Sequence[Run]) -> list[RequestRecord]:
    return [record for run in runs for record in run.records if record.failure is None]


def stage_shares(replicas: Sequence[ReplicaUse]) -> list[tuple[float, float]]:
    """Return the busy and the idle share of each pipeline stage, over all replicas.

    They are shares of the time in which a replica had requests. Idle in it is a bubble, so the two
    make 1.
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
    """Return the share of the time with requests in which the engine prepared iterations."""
    active = sum(use.active for use in replicas)
    return sum(use.overhead for use in replicas) / active if active else None


def kv_shares(replicas: Sequence[ReplicaUse]) -> tuple[float, float] | None:
    """Return the mean (over the time with requests) and the largest share of KV blocks in use."""
    active = sum(use.active for use in replicas)
    if not active:
        return None
    mean = sum(use.kv_mean * use.active for use in replicas) / active
    return mean, max(use.kv_max for use in replicas)


def simulation_notes(simulation: Simulation) -> list[str]:
    """Return how well the simulated hardware was used; the last note is the accuracy."""
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
    found += filter(None, [sampling_note(simulation)])
    return [*found, f"accuracy: {simulation.accuracy}"]


def sampling_note(simulation: Simulation) -> str | None:
    """Return a note where the records hold only some of the requests."""
    every = simulation.records_every
    if every <= 1:
        return None
    return f"figures by request show one in {every:,}; percentiles are those of all"
