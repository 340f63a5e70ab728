"""The iteration log: one line of JSON for every iteration of an engine."""

from __future__ import annotations

import time

import msgspec

from sarathi.scheduler import Request, Slice
from sarathi.telemetry.recorder import BudgetUnit, IterationRecord, RecordFile


class Start(msgspec.Struct, array_like=True, frozen=True):
    """A request that was computed for the first time."""

    id: int
    prompt_tokens: int
    cached_tokens: int  # of those, found in the prefix cache
    delay: float  # seconds from its arrival to the begin of the iteration: the scheduling delay


class PromptSlice(msgspec.Struct, array_like=True, frozen=True):
    """`length` tokens of a request from position `start`."""

    id: int
    start: int
    length: int


class StageSpan(msgspec.Struct, array_like=True, frozen=True):
    """Times of one pipeline stage for an iteration, in seconds."""

    busy: float
    waited: float  # since the end of the iteration before


class IterationLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the log; `msgspec.json.decode(line, type=IterationLine)` reads it.

    Times are seconds. Requests are given by their id in the engine. With several pipeline stages,
    as many iterations are in flight at a time, and lines come in the order in which they end.
    """

    iteration: int  # from 1; those that only preempted requests count
    time: float  # of its begin, since the Unix epoch
    offset: float  # of its begin, since the log was opened; never jumps
    duration: float
    predicted: float | None  # duration, by the latency model; None without one
    budget: float | None  # for prompts; None: the policy has no budget
    budget_unit: BudgetUnit | None
    tokens: int  # computed, decodes included
    attention: float  # sum over prompt slices of length * (start + length / 2)
    context: int  # sum over decodes of their tokens in the KV cache
    samples: int  # rows of logits: that a token was sampled from, or that score one of a prompt
    decodes: list[int]  # requests that computed one token each
    prompts: list[PromptSlice]  # recomputation after a preemption included
    started: list[Start]
    finished: list[int]
    cancelled: list[int]  # since the line before; some may never have started
    preempted: list[int]  # lost their blocks, will be recomputed
    running: int  # requests, as all of the following after the iteration
    waiting: int
    free_blocks: int  # those that hold cached prefixes included
    cached_blocks: int  # unused, with a cached prefix
    parts: dict[str, float]  # of the duration
    stages: list[StageSpan] = []  # first to last; empty if nothing was computed


class IterationLog:
    """A `Recorder` that writes an `IterationLine` for every iteration."""

    def __init__(self, path: str, start: float, budget_unit: BudgetUnit | None) -> None:
        """Empty the file at `path`; `ConfigError` if it cannot be written.

        Offsets count from `start`, by time.monotonic. `budget_unit` is that of `Batch.allowance`;
        None where the policy has no budget.
        """
        self._file = RecordFile(path, "--iteration-log")
        self._budget_unit = budget_unit
        self._start = start
        self._cancelled: list[int] = []

    def arrived(self, request: Request) -> None:
        pass  # a line names a request when some of it is computed

    def record(self, record: IterationRecord) -> None:
        if not self._file.is_open:
            return
        # Computed each time: the wall clock may be set while the engine runs.
        wall = time.time() - (time.monotonic() - record.begin)
        line = line_of(record, wall, self._start, self._budget_unit, self._cancelled)
        self._file.append(line, after=b"\n")
        self._cancelled.clear()
        self._file.flush_if_due()

    def cancelled(self, request_id: int, now: float) -> None:
        if self._file.is_open:
            self._cancelled.append(request_id)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def line_of(
    record: IterationRecord,
    wall: float,
    start: float,
    budget_unit: BudgetUnit | None,
    cancelled: list[int],
) -> IterationLine:
    """Return the line of an iteration.

    Args:
        wall: the time since the Unix epoch at which the iteration began.
        start: what offsets count from, on the clock of the record.
        cancelled: requests, since the iteration before.
    """
    batch, begin = record.batch, record.begin
    decodes, prompts = batch.slices[: batch.num_decodes], batch.slices[batch.num_decodes :]
    ends = [begin, *(end for _, end in record.parts)]
    return IterationLine(
        iteration=batch.id,
        time=round(wall, 6),
        offset=round(begin - start, 6),
        duration=round(record.end - begin, 6),
        predicted=None if batch.predicted is None else round(batch.predicted, 6),
        budget=None if budget_unit is None else round(batch.allowance, 6),
        budget_unit=budget_unit,
        tokens=batch.work.tokens,
        attention=batch.work.attention,
        context=batch.work.context,
        samples=batch.work.samples,
        decodes=[part.request.id for part in decodes],
        prompts=[PromptSlice(p.request.id, p.start, p.length) for p in prompts],
        started=[
            _start(part, begin) for part in prompts if part.request.first_scheduled_at == begin
        ],
        finished=[output.id for output in record.outputs if output.finish_reason],
        cancelled=cancelled,
        preempted=[request.id for request in batch.preempted],
        running=record.running,
        waiting=record.waiting,
        free_blocks=record.free_blocks,
        cached_blocks=record.cached_blocks,
        parts={
            name: round(end - before, 6)
            for (name, end), before in zip(record.parts, ends, strict=False)
        },
        stages=[StageSpan(round(s.busy, 6), round(s.waited, 6)) for s in record.stages],
    )


def _start(part: Slice, begin: float) -> Start:
    """Return the start of a request from its first slice, which begins after the cached prefix."""
    request = part.request
    delay = round(begin - request.arrival, 6)
    return Start(request.id, len(request.prompt_ids), part.start, delay)
