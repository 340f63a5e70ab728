"""GET /stats: the state of the engine as JSON."""

from __future__ import annotations

import msgspec

from sarathi.engine.messages import ModelInfo
from sarathi.fleet.fleet import Engine
from sarathi.fleet.replica import by_state
from sarathi.telemetry.stats import Stats, initial_stats


def stats_body(info: ModelInfo, engine: Engine) -> dict[str, object]:
    """Return the response to GET /stats: all fields of `Stats`, targets and replicas."""
    stats = current_stats(info, engine.stats)
    return {
        **msgspec.structs.asdict(stats),
        "prefix_hit_rate": stats.prefix_hit_rate,
        "tbt_target": info.tbt_target,  # seconds; null without one
        "token_budget": info.token_budget,  # tokens; null without one
        "replicas": by_state(engine.replicas),
        "replica_restarts": engine.restarts,
        "requests_resumed": engine.resumed,
    }


def current_stats(info: ModelInfo, stats: Stats | None) -> Stats:
    """Return the latest statistics, or those of an engine that has run nothing yet."""
    return initial_stats(info.num_blocks, info.num_stages) if stats is None else stats
