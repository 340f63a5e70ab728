"""GET /stats: the scheduler's state as JSON."""

from __future__ import annotations

import msgspec

from sarathi.engine.messages import ModelInfo, Stats
from sarathi.server.responses import SchedulerStats


def scheduler_stats(info: ModelInfo, stats: Stats | None) -> SchedulerStats:
    now = current_stats(info, stats)
    return SchedulerStats(
        **msgspec.structs.asdict(now),
        prefix_hit_rate=now.cached_tokens / now.prompt_tokens if now.prompt_tokens else None,
        tbt_target=info.tbt_target,
        token_budget=info.token_budget,
    )


def current_stats(info: ModelInfo, stats: Stats | None) -> Stats:
    """The latest, or those of an engine that has run nothing yet."""
    if stats is not None:
        return stats
    return Stats(
        running=0,
        waiting=0,
        free_blocks=info.num_blocks,
        cached_blocks=0,
        total_blocks=info.num_blocks,
        preemptions=0,
        iterations=0,
        prompt_tokens=0,
        cached_tokens=0,
        relegations=0,
        model_error_median=0.0,
        model_error_p90=0.0,
    )
