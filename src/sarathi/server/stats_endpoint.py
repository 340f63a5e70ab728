"""GET /stats: the schedulers' state as JSON."""

from __future__ import annotations

import msgspec

from sarathi.engine.messages import ModelInfo
from sarathi.fleet.fleet import Engine
from sarathi.fleet.replica import by_state
from sarathi.server.openai.response_bodies import SchedulerStats
from sarathi.telemetry.stats import Stats, at_start


def scheduler_stats(info: ModelInfo, engine: Engine) -> SchedulerStats:
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
    """The latest, or those of an engine that has run nothing yet."""
    return at_start(info.num_blocks, info.num_stages) if stats is None else stats
