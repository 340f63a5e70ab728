"""Requests, batches and records as an engine would make them."""

from __future__ import annotations

from typing import Any

from sarathi.engine.messages import TokenOutput
from sarathi.scheduler import Batch, FinishReason, Request, Slice, StopCriteria, Work
from sarathi.telemetry.recorder import IterationRecord

START = 1000.0  # time.monotonic when recording began


def request(
    request_id: int,
    prompt_tokens: int = 8,
    arrival: float = START,
    first_scheduled_at: float | None = None,
) -> Request:
    return Request(
        request_id,
        [1] * prompt_tokens,
        StopCriteria(4),
        arrival,
        first_scheduled_at=first_scheduled_at,
    )


def prompt(of: Request, start: int, length: int) -> Slice:
    return Slice(of, start, length, start + length == len(of.prompt_ids))


def decode(of: Request) -> Slice:
    return Slice(of, len(of.prompt_ids), 1, True)


def batch(batch_id: int, *slices: Slice, **fields: Any) -> Batch:
    decodes = sum(part.start >= len(part.request.prompt_ids) for part in slices)
    work = Work(
        tokens=sum(part.length for part in slices),
        attention=sum(p.length * (p.start + p.length / 2) for p in slices[decodes:]),
        context=sum(part.start for part in slices[:decodes]),
        samples=sum(part.samples for part in slices),
    )
    return Batch(batch_id, slices, decodes, work=work, **fields)


def record(
    of: Batch,
    begin: float = START + 1,
    end: float = START + 2,
    *,
    finished: dict[int, FinishReason] | None = None,
    **fields: Any,
) -> IterationRecord:
    """All that sample get a token; `finished` has the finish reasons of those that end."""
    outputs = [
        TokenOutput(part.request.id, 7, (finished or {}).get(part.request.id))
        for part in of.slices
        if part.samples
    ]
    state: dict[str, Any] = {
        "parts": (),
        "running": 2,
        "waiting": 0,
        "free_blocks": 6,
        "cached_blocks": 1,
        "total_blocks": 10,
    }
    return IterationRecord(of, outputs, begin, end, **{**state, **fields})
