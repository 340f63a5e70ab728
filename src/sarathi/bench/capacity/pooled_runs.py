"""Several runs of the same load in figures, as if they were one."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from sarathi.bench.results import Run
from sarathi.telemetry import Summary, summarise


def pooled(runs: Sequence[Run]) -> Summary:
    """Latencies of all their requests, and the mean throughput, by the time that each run took.

    There is no goodput: the runs of a search have no targets of single requests.

    Args:
        runs: at least one.
    """
    parts = [run.summary for run in runs]
    if len(parts) == 1:
        return parts[0]
    duration = sum(part.duration for part in parts)
    seconds = [part.duration / duration if duration else 0.0 for part in parts]
    requests = sum(part.requests for part in parts)

    def mean(values: Sequence[float]) -> float:
        return sum(value * share for value, share in zip(values, seconds, strict=True))

    # Each run counts time from its own beginning, so what is per second is not that of the whole.
    sending = sum(part.requests / part.request_rate for part in parts if part.request_rate)
    return replace(
        summarise([record for run in runs for record in run.records]),
        duration=duration,
        request_rate=requests / sending if sending else 0.0,
        completed_per_second=mean([part.completed_per_second for part in parts]),
        output_tokens_per_second=mean([part.output_tokens_per_second for part in parts]),
        total_tokens_per_second=mean([part.total_tokens_per_second for part in parts]),
    )
