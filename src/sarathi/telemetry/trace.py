"""The trace: iterations, requests and counters over time, for Perfetto.

The format is that of "Trace Event Format" by the Chromium authors, as a JSON array. Its readers
accept an array without its end, so the file is a valid trace at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sarathi.scheduler import Request
from sarathi.telemetry.recorder import BudgetUnit, IterationRecord, RecordFile, StageTracks

_Args = Mapping[str, Any]

_PROCESS = 1
_TRACK = 1  # the thread of the iterations; overlapping ones use the next
_STAGES = 100  # the thread of the first stage
_WAITING, _PREFILL, _DECODE = "waiting", "prefill", "decode"


class TraceRecorder:
    """A `Recorder` that writes trace events. Times are whole microseconds since it was opened.

    Whole, so that the parts of an iteration nest in it exactly, whatever the rounding.
    """

    def __init__(self, path: str, start: float, budget_unit: BudgetUnit | None) -> None:
        """Empty the file at `path`; `ConfigError` if it cannot be written.

        Times count from `start`, by time.monotonic. `budget_unit` is that of `Batch.allowance`;
        None where the policy has no budget.
        """
        self._file = RecordFile(path, "--trace")
        self._start = start
        self._budget_unit = budget_unit
        self._phases: dict[int, str] = {}  # of requests that have arrived and not ended
        self._before = b"[\n"  # separator in front, so that a truncated file ends without a comma
        self._lanes: list[int] = []  # when the latest iteration of each track ends
        self._stage_tracks = StageTracks()
        self._named_stages = 0
        self._metadata("process_name", "sarathi engine")
        self._metadata("thread_name", "iterations")

    def arrived(self, request: Request) -> None:
        if not self._file.is_open:
            return
        at = self._microseconds(request.arrival)
        args = {"prompt_tokens": len(request.prompt_ids)}
        self._span("b", request.id, _title(request.id), at, args)
        self._enter(request.id, _WAITING, at)

    def record(self, record: IterationRecord) -> None:
        if not self._file.is_open:
            self._phases.clear()
            return
        begin, end = self._microseconds(record.begin), self._microseconds(record.end)
        self._iteration(record, begin, end)
        if len(record.stages) > 1:
            self._stages(record)
        self._counters(record, begin, end)
        self._requests(record, begin, end)
        self._file.flush_if_due()

    def cancelled(self, request_id: int, now: float) -> None:
        if self._file.is_open:
            self._end(request_id, self._microseconds(now), "cancelled")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close(b"\n]\n")

    def _microseconds(self, at: float) -> int:
        # A request can be older than an engine that was started to replace another.
        return max(round((at - self._start) * 1e6), 0)

    # -- the tracks of the engine and of stages -----------------------------------------------

    def _iteration(self, record: IterationRecord, begin: int, end: int) -> None:
        batch = record.batch
        args: dict[str, Any] = {
            "iteration": batch.id,
            "tokens": batch.work.tokens,
            "decodes": batch.num_decodes,
        }
        if prompts := batch.slices[batch.num_decodes :]:
            args["prompts"] = [f"{p.request.id}: {p.start} + {p.length}" for p in prompts]
        if self._budget_unit == "tokens":
            args["budget_tokens"] = batch.allowance
        elif self._budget_unit == "seconds":
            args["budget_ms"] = round(batch.allowance * 1e3, 3)
        if batch.predicted is not None:
            args["predicted_ms"] = round(batch.predicted * 1e3, 3)
        track = self._lane(begin, end)
        self._slice("iteration", begin, end, args, track)
        for name, until in record.parts:
            stop = self._microseconds(until)
            self._slice(name, begin, stop, None, track)
            begin = stop

    def _lane(self, begin: int, end: int) -> int:
        """Return a track that is free at that time: slices on one track must nest."""
        for lane, free in enumerate(self._lanes):
            if free <= begin:
                self._lanes[lane] = end
                return _TRACK + lane
        self._lanes.append(end)
        track = _TRACK + len(self._lanes) - 1
        if track != _TRACK:
            self._metadata("thread_name", f"iterations {len(self._lanes)}", track)
        return track

    def _stages(self, record: IterationRecord) -> None:
        for stage in range(self._named_stages, len(record.stages)):
            self._metadata("thread_name", f"stage {stage}", _STAGES + stage)
        self._named_stages = len(record.stages)
        submitted = record.parts[0][1] if record.parts else record.begin
        args = {"iteration": record.batch.id, "tokens": record.batch.work.tokens}
        spans = self._stage_tracks.spans(record.stages, submitted, record.after_idle)
        for stage, (begin, end) in enumerate(spans):
            at, until = self._microseconds(begin), self._microseconds(end)
            self._slice("compute", at, until, args, _STAGES + stage)

    def _counters(self, record: IterationRecord, begin: int, end: int) -> None:
        batch = record.batch
        prompt = batch.work.tokens - batch.num_decodes
        self._counter("tokens", begin, {"decode": batch.num_decodes, "prompt": prompt})
        if not (record.running or record.waiting):
            self._counter("tokens", end, {"decode": 0, "prompt": 0})  # until the next arrival
        self._counter("requests", end, {"running": record.running, "waiting": record.waiting})
        used = record.total_blocks - record.free_blocks
        free = record.free_blocks - record.cached_blocks
        blocks = {"used": used, "cached": record.cached_blocks, "free": free}
        self._counter("KV blocks", end, blocks)

    # -- a track for each request -------------------------------------------------------------

    def _requests(self, record: IterationRecord, begin: int, end: int) -> None:
        batch, phases = record.batch, self._phases
        for request in batch.preempted:
            if request.id in phases:
                event = {"ph": "i", "s": "t", "name": "preemption", "ts": begin}
                self._add(event, {"request": request.id})
                self._enter(request.id, _WAITING, begin, {"preempted": True})
        for index, part in enumerate(batch.slices):
            phase = _DECODE if index < batch.num_decodes else _PREFILL
            if phases.get(part.request.id) == _WAITING:
                self._enter(part.request.id, phase, begin, {"from": part.start})
        for output in record.outputs:
            if phases.get(output.id) == _PREFILL:
                self._enter(output.id, _DECODE, end)
            if output.finish_reason:
                self._end(output.id, end, output.finish_reason)

    def _enter(self, request_id: int, phase: str, at: int, args: _Args | None = None) -> None:
        previous = self._phases.get(request_id)
        if previous is not None:
            self._span("e", request_id, previous, at)
        self._phases[request_id] = phase
        self._span("b", request_id, phase, at, args)

    def _end(self, request_id: int, at: int, reason: str) -> None:
        phase = self._phases.pop(request_id, None)
        if phase is not None:
            self._span("e", request_id, phase, at)
            self._span("e", request_id, _title(request_id), at, {"finish_reason": reason})

    # -- events -------------------------------------------------------------------------------

    def _slice(self, name: str, begin: int, end: int, args: _Args | None, track: int) -> None:
        self._add({"ph": "X", "name": name, "ts": begin, "dur": end - begin}, args, track)

    def _counter(self, name: str, at: int, values: _Args) -> None:
        self._add({"ph": "C", "name": name, "ts": at}, values)

    def _span(
        self, phase: str, request_id: int, name: str, at: int, args: _Args | None = None
    ) -> None:
        """Begin ("b") or end ("e") a part of a request's track; the parts nest."""
        event = {"ph": phase, "cat": "request", "id": str(request_id), "name": name, "ts": at}
        self._add(event, args)

    def _metadata(self, name: str, value: str, track: int = _TRACK) -> None:
        self._add({"ph": "M", "name": name}, {"name": value}, track)

    def _add(self, event: dict[str, Any], args: _Args | None, track: int = _TRACK) -> None:
        event["pid"] = _PROCESS
        event["tid"] = track
        if args is not None:
            event["args"] = args
        self._file.append(event, before=self._before)
        self._before = b",\n"


def _title(request_id: int) -> str:
    return f"request {request_id}"
