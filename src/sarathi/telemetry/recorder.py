"""The interface of recorders, the record of an iteration and its stages, and their file."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, NamedTuple, Protocol

import msgspec

from sarathi.errors import ConfigError
from sarathi.scheduler import Batch, FinishReason, Request

BudgetUnit = Literal["tokens", "seconds"]

FLUSH_INTERVAL = 1.0  # seconds that a line may stay in memory while the engine has work
_FLUSH_SIZE = 1 << 18  # bytes

logger = logging.getLogger(__name__)


class StageTime(NamedTuple):
    """Times of one stage for one step, in seconds."""

    waited: float  # since the end of the step before
    busy: float


class StageTotals:
    """Busy and idle seconds of each stage, as steps complete.

    The bubble of a stage is the time in which it had nothing to compute while the engine had work.
    The wait for the first step after the engine was idle does not count, which leaves out the time
    that this step takes in the stages before.
    """

    def __init__(self) -> None:
        self.busy: list[float] = []
        self.bubble: list[float] = []

    def add(self, stages: Sequence[StageTime], after_idle: bool) -> None:
        """Add the times of a step, perhaps the first after the engine was idle."""
        if not self.busy:
            self.busy = [0.0] * len(stages)
            self.bubble = [0.0] * len(stages)
        for index, (waited, busy) in enumerate(stages):
            self.busy[index] += busy
            if not after_idle:
                self.bubble[index] += waited


class StageTracks:
    """Reconstructs when each stage computed each step.

    A stage measures how long it waited and computed, but not when. A step that found the pipeline
    empty began when it was submitted, and in each stage when the previous stage had computed it:
    the time of messages is left out. From there on the times of each stage add up.
    """

    def __init__(self) -> None:
        self._ended: list[float] = []  # of the step before, by stage

    def spans(
        self, stages: Sequence[StageTime], submitted: float, after_idle: bool
    ) -> list[tuple[float, float]]:
        """Return begin and end of a step in each stage, in seconds; steps come in order.

        `submitted` is a time in seconds; `after_idle`, whether the engine was idle before the step.
        """
        if after_idle or len(stages) != len(self._ended):
            ends = [submitted + busy for busy in accumulate(stage.busy for stage in stages)]
        else:
            before = zip(self._ended, stages, strict=True)
            ends = [ended + waited + busy for ended, (waited, busy) in before]
        self._ended = ends
        return [(end - stage.busy, end) for end, stage in zip(ends, stages, strict=True)]


class RecordedOutput(Protocol):
    """The fields of a published token that recorders read."""

    @property
    def id(self) -> int: ...
    @property
    def finish_reason(self) -> FinishReason | None: ...


class IterationRecord(NamedTuple):
    """One iteration, after the scheduler has completed its batch. Times: time.monotonic.

    With several stages, others begin before it ends; they end in the order in which they began.
    """

    batch: Batch
    outputs: Sequence[RecordedOutput]  # what was published: no cancelled and no failed requests
    begin: float
    end: float
    parts: Sequence[tuple[str, float]]  # name and end of each, in order; the first starts at begin
    running: int  # requests, as all of the following after the iteration
    waiting: int
    free_blocks: int  # those that hold cached prefixes included
    cached_blocks: int  # unused, with a cached prefix
    total_blocks: int
    stages: Sequence[StageTime] = ()  # first to last; empty where nothing was computed
    after_idle: bool = False  # whether the engine was idle before it


class Recorder(Protocol):
    """Records what an engine does. No call raises, even if the file cannot be written."""

    def arrived(self, request: Request) -> None:
        """Record that the scheduler has queued a new request."""

    def record(self, record: IterationRecord) -> None:
        """Record an iteration."""

    def cancelled(self, request_id: int, now: float) -> None:
        """Record that a request was cancelled by its client, or failed."""

    def flush(self) -> None:
        """Write everything to the file; called when the engine becomes idle."""

    def close(self) -> None:
        """Finish the file."""


class RecordFile:
    """A file of JSON values, written in large pieces and without errors that would stop serving.

    Values stay in memory for up to `FLUSH_INTERVAL` or until `flush`. Only whole values are
    written, so a process that is killed leaves a file that ends after one of them. If writing
    fails, such as on a full disk, a warning is logged and all later values are dropped.
    """

    def __init__(self, path: str, flag: str) -> None:
        """Create the file, or empty an existing one; `ConfigError` if it cannot be written.

        `flag` is the option that gave the path, for messages.
        """
        self._name = f"{flag} {path}"
        # Non-blocking: a pipe without a reader must neither hang the start nor the iterations.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self._file: int | None = os.open(path, flags, 0o644)
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"{self._name} cannot be written: {reason}") from error
        self._encoder = msgspec.json.Encoder()
        self._buffer = bytearray()
        self._size = 0  # bytes that have been written
        self._flushed = time.monotonic()

    @property
    def is_open(self) -> bool:
        """Whether values are still written: False after `close` and after a failure."""
        return self._file is not None

    def append(self, value: object, *, before: bytes = b"", after: bytes = b"") -> None:
        """Append a JSON value between two pieces of text."""
        if self._file is not None:
            self._buffer += before
            self._encoder.encode_into(value, self._buffer, -1)
            self._buffer += after

    def flush_if_due(self) -> None:
        """Write the values in memory if there are many, or the last write is long ago."""
        now = time.monotonic()
        if now - self._flushed >= FLUSH_INTERVAL or len(self._buffer) >= _FLUSH_SIZE:
            self.flush()

    def flush(self) -> None:
        """Write the values in memory."""
        self._flushed = time.monotonic()
        if self._file is None or not self._buffer:
            return
        try:
            with memoryview(self._buffer) as view:
                done = 0
                while done < len(view):
                    done += os.write(self._file, view[done:])
            self._size += len(self._buffer)
        except OSError as error:
            reason = error.strerror or error
            logger.warning("%s cannot be written any more and ends here: %s", self._name, reason)
            with contextlib.suppress(OSError):  # a pipe cannot be truncated
                os.ftruncate(self._file, self._size)
            self._release()
        self._buffer.clear()

    def close(self, end: bytes = b"") -> None:
        """Write the values in memory and the `end`, and close the file."""
        self._buffer += end
        self.flush()
        self._release()

    def _release(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                os.close(file)
            except OSError as error:  # network file systems report a full disk only now
                logger.warning("%s may be incomplete: %s", self._name, error.strerror or error)
