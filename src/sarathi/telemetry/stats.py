"""Statistics of an engine process: every counter and gauge of it, declared once.

The fields of `Stats` are all there is to declare: the message between processes, the sums over
replicas, GET /stats and GET /metrics follow from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

import msgspec


@dataclass(frozen=True, slots=True)
class Metric:
    """How a field of `Stats` is exposed, and how the values of several engines are combined.

    A counter counts since the start and outlives its engine; gauges and summaries end with it.
    """

    kind: Literal["counter", "gauge", "summary"]
    description: str
    name: str | None = None  # in GET /metrics, after "sarathi_"; None: not on its own
    label: str | None = None  # distinguishes the samples of one name: list entries, or `samples`
    samples: Callable[[Stats], Mapping[str, float]] | None = None  # by label; None: the field's
    combine: Callable[[Iterable[float]], float] = sum


class Stats(msgspec.Struct, array_like=True, frozen=True):
    """State of an engine after an iteration. Sent with each."""

    running: Annotated[int, Metric("gauge", "Requests that run", "requests_running")]
    waiting: Annotated[int, Metric("gauge", "Requests that wait to run", "requests_waiting")]
    free_blocks: Annotated[int, Metric("gauge", "Unused blocks, cached ones included")]
    cached_blocks: Annotated[int, Metric("gauge", "Unused blocks that hold a cached prefix")]
    total_blocks: Annotated[
        int,
        Metric(
            "gauge",
            "Blocks of the KV cache by what they hold",
            "kv_blocks",
            label="state",
            samples=lambda stats: {
                "free": stats.free_blocks - stats.cached_blocks,
                "cached": stats.cached_blocks,
                "used": stats.total_blocks - stats.free_blocks,
            },
        ),
    ]
    preemptions: Annotated[
        int, Metric("counter", "Requests put back to wait for memory", "preemptions")
    ]
    iterations: Annotated[int, Metric("counter", "Iterations of the engine", "iterations")]
    prompt_tokens: Annotated[
        int, Metric("counter", "Tokens of the prompts admitted", "prompt_tokens")
    ]
    cached_tokens: Annotated[
        int, Metric("counter", "Of those, found in the prefix cache", "cached_prompt_tokens")
    ]
    relegations: Annotated[
        int, Metric("counter", "Requests put last, late for their TTFT target", "relegations")
    ]
    model_error_median: Annotated[
        float, Metric("summary", "Median relative error of predicted iteration times", combine=max)
    ]
    model_error_p90: Annotated[
        float,
        Metric(
            "summary",
            "Error of the predicted iteration time over the latest iterations",
            "latency_model_relative_error",
            label="quantile",
            samples=lambda stats: {"0.5": stats.model_error_median, "0.9": stats.model_error_p90},
            combine=max,
        ),
    ]
    stage_busy: Annotated[
        list[float],
        Metric(
            "counter",
            "Seconds in which a pipeline stage computed",
            "stage_busy_seconds",
            label="stage",
        ),
    ] = []
    stage_bubble: Annotated[
        list[float],
        Metric(
            "counter",
            "Seconds in which it had nothing to compute, with work",
            "stage_bubble_seconds",
            label="stage",
        ),
    ] = []

    @property
    def prefix_hit_rate(self) -> float | None:
        """Cached of all prompt tokens; None before the first prompt."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None


_HINTS: Mapping[str, Any] = get_type_hints(Stats, include_extras=True)
METRICS: Mapping[str, Metric] = {name: hint.__metadata__[0] for name, hint in _HINTS.items()}
_ZEROS: Mapping[str, Any] = {name: hint.__origin__() for name, hint in _HINTS.items()}


class MetricSamples(NamedTuple):
    """A metric and its values."""

    metric: Metric
    samples: Mapping[str, float]  # by label; of "" without one


def exposed(stats: Stats) -> Iterator[MetricSamples]:
    """Iterate over what GET /metrics exposes."""
    for field, metric in METRICS.items():
        value = getattr(stats, field)
        if metric.name is None:
            continue
        if metric.samples is not None:
            samples = metric.samples(stats)
        elif isinstance(value, int | float):
            samples = {"": value}
        else:
            samples = {str(index): entry for index, entry in enumerate(value)}
        yield MetricSamples(metric, samples)


def initial_stats(num_blocks: int, num_stages: int) -> Stats:
    """Return the statistics of an engine that has run nothing yet."""
    idle = [0.0] * num_stages
    return msgspec.structs.replace(
        combined([]),
        free_blocks=num_blocks,
        total_blocks=num_blocks,
        stage_busy=idle,
        stage_bubble=idle,
    )


def combined(parts: Sequence[Stats]) -> Stats:
    """Return the statistics of several engines as one; lists are combined entry by entry."""
    values: dict[str, Any] = {}
    for field, metric in METRICS.items():
        column = [getattr(part, field) for part in parts]
        zero = _ZEROS[field]
        if isinstance(zero, list):
            entries = zip_longest(*column, fillvalue=0.0)
            values[field] = [metric.combine(entry) for entry in entries]
        else:
            values[field] = metric.combine([zero, *column])
    return Stats(**values)


def counters_only(stats: Stats) -> Stats:
    """Return what remains of an engine's statistics after its end: its counters."""
    ended = {field: _ZEROS[field] for field, metric in METRICS.items() if metric.kind != "counter"}
    return msgspec.structs.replace(stats, **ended)
