"""The statistics of several engines as one, over the deaths of engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from sarathi.engine.messages import ModelInfo, Stats

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


def at_start(info: ModelInfo) -> Stats:
    """Those of an engine that has run nothing yet."""
    none = [0.0] * info.num_stages
    return msgspec.structs.replace(
        _NOTHING,
        free_blocks=info.num_blocks,
        total_blocks=info.num_blocks,
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
