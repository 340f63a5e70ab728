"""What made runs easier on a server than they were meant to be."""

from __future__ import annotations

from collections.abc import Sequence

from sarathi.bench.number_format import percent
from sarathi.bench.results import Run
from sarathi.telemetry import RequestRecord


def short_answers(runs: Sequence[Run]) -> str | None:
    """None where complete answers are as long as asked."""
    complete = _complete(runs)
    asked = sum(record.output_tokens for record in complete)
    had = sum(min(len(record.tokens), record.output_tokens) for record in complete)
    return f"answers had {had:,} of {asked:,} tokens asked for" if had < asked else None


def cached_prompts(runs: Sequence[Run]) -> str | None:
    """None where the server tells of none."""
    complete = _complete(runs)
    cached = sum(record.cached_tokens for record in complete)
    if not cached:
        return None
    share = cached / sum(record.prompt_tokens for record in complete)
    return f"{percent(share)} of the prompt tokens came from the server's prefix cache"


def has_conversations(run: Run) -> bool:
    """Its prompts share prefixes on purpose."""
    return "turns" in run.workload


def _complete(runs: Sequence[Run]) -> list[RequestRecord]:
    return [record for run in runs for record in run.records if record.failure is None]
