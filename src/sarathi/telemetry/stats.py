"""Statistics of an engine, and of several engines as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec


class Stats(msgspec.Struct, array_like=True, frozen=True):
    """The scheduler's state after an iteration; what is counted is counted since start."""

    running: int
    waiting: int
    free_blocks: int  # those that hold cached prefixes included
    cached_blocks: int  # hold prefixes that nobody uses at the moment
    total_blocks: int
    preemptions: int
    iterations: int
    prompt_tokens: int  # of admitted prompts
    cached_tokens: int  # of those, found in the prefix cache
    relegations: int  # requests that could not meet their TTFT target any more
    model_error_median: float  # of the predicted iteration time, relative, over the latest ones
    model_error_p90: float
    stage_busy: list[float] = []  # seconds of each pipeline stage
    stage_bubble: list[float] = []  # in which it had nothing to compute while there was work


# What an engine has now, as opposed to what it has done.
_GAUGES = frozenset({"running", "waiting", "free_blocks", "cached_blocks", "total_blocks"})
_WORST = frozenset({"model_error_median", "model_error_p90"})  # nothing else says more of several
_NOTHING = Stats(
    running=0,
    waiting=0,
    free_blocks=0,
    cached_blocks=0,
    total_blocks=0,
    preemptions=0,
    iterations=0,
    prompt_tokens=0,
    cached_tokens=0,
    relegations=0,
    model_error_median=0.0,
    model_error_p90=0.0,
)


def at_start(num_blocks: int, num_stages: int) -> Stats:
    """Return the statistics of an engine that has run nothing yet."""
    none = [0.0] * num_stages
    return msgspec.structs.replace(
        _NOTHING,
        free_blocks=num_blocks,
        total_blocks=num_blocks,
        stage_busy=none,
        stage_bubble=none,
    )


def total(parts: Sequence[Stats]) -> Stats:
    """Sums; of errors the largest; lists with an entry a stage are added entry by entry."""
    values: dict[str, Any] = {}
    for name in Stats.__struct_fields__:
        column: list[Any] = [getattr(part, name) for part in parts]
        if name in _WORST:
            values[name] = max(column, default=0.0)
        elif column and isinstance(column[0], list | tuple):
            values[name] = _added(column)
        else:
            values[name] = sum(column)
    return Stats(**values)


def done(stats: Stats) -> Stats:
    """What is left of an engine's statistics when it is gone: what it has done."""
    zeros = dict.fromkeys(_GAUGES, 0) | dict.fromkeys(_WORST, 0.0)
    return msgspec.structs.replace(stats, **zeros)


def _added(lists: Sequence[Sequence[float]]) -> list[float]:
    length = max(map(len, lists))
    return [sum(one[index] for one in lists if index < len(one)) for index in range(length)]
