"""GET /stats: the schedulers' state as JSON."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from sarathi.engine.messages import ModelInfo
from sarathi.fleet.fleet import Engine
from sarathi.fleet.replica import ReplicaState, by_state
from sarathi.telemetry.stats import Stats, at_start


class SchedulerStats(Struct, frozen=True, kw_only=True):
    """GET /stats: `Stats` for operators, and what the scheduler aims at."""

    running: int
    waiting: int
    free_blocks: int  # cached ones included
    cached_blocks: int
    total_blocks: int
    preemptions: int  # this and the next four: since start
    iterations: int
    prompt_tokens: int
    cached_tokens: int
    relegations: int
    prefix_hit_rate: float | None  # cached of prompt tokens; null before the first prompt
    model_error_median: float  # relative, of the predicted iteration time
    model_error_p90: float
    stage_busy: list[float]  # seconds of each pipeline stage, since start
    stage_bubble: list[float]  # likewise, in which it had nothing to compute while there was work
    tbt_target: float | None  # seconds; null where none is in force
    token_budget: int | None  # tokens; null where a target takes its place, or nothing
    replicas: dict[ReplicaState, int]  # how many are in each state
    replica_restarts: int  # this and the next: since start
    requests_resumed: int  # times that one went on in another engine than before


def scheduler_stats(info: ModelInfo, engine: Engine) -> SchedulerStats:
    """Return the body of GET /stats."""
    now = current_stats(info, engine.stats)
    return SchedulerStats(
        **msgspec.structs.asdict(now),
        prefix_hit_rate=now.cached_tokens / now.prompt_tokens if now.prompt_tokens else None,
        tbt_target=info.tbt_target,
        token_budget=info.token_budget,
        replicas=by_state(engine.replicas),
        replica_restarts=engine.restarts,
        requests_resumed=engine.resumed,
    )


def current_stats(info: ModelInfo, stats: Stats | None) -> Stats:
    """Return the latest statistics, or those of an engine that has run nothing yet."""
    return at_start(info.num_blocks, info.num_stages) if stats is None else stats
