"""The progress of a run in one line of a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.live import Live
from rich.text import Text

from sarathi.bench.number_format import milliseconds, seconds
from sarathi.telemetry import RequestRecord

_INTERVAL = 1.0  # seconds between two updates: each takes a millisecond from the client
_LATEST = 5000  # values for the percentiles


@dataclass(eq=False)
class ProgressLine:
    """A `RunListener` that shows how many requests are running, and the latest percentiles."""

    title: str
    total: int  # requests, the warm-up included
    live: Live  # started by the caller, without automatic refresh

    def __post_init__(self) -> None:
        self._arrivals: dict[int, float] = {}
        self._latest: dict[int, float] = {}
        self._ttft: list[float] = []
        self._gaps: list[float] = []
        self._sent = self._ended = self._failed = 0
        self._updated = 0.0

    def sent(self, index: int, now: float) -> None:
        self._sent += 1
        self._arrivals[index] = now

    def progressed(self, index: int, times: Sequence[float]) -> None:
        before = self._latest.get(index)
        for time in times:
            if before is None:
                self._ttft.append(time - self._arrivals[index])
            else:
                self._gaps.append(time - before)
            before = time
        if before is not None:
            self._latest[index] = before

    def ended(self, index: int, record: RequestRecord) -> None:
        self._ended += 1
        self._failed += record.failure is not None

    def stop_reason(self, now: float) -> str | None:
        """Update the line once a second; never stops a run."""
        if now - self._updated >= _INTERVAL:
            self._updated = now
            self.live.update(Text(self.line(now)), refresh=True)
        return None

    def line(self, now: float) -> str:
        """Return the current line.

        Args:
            now: seconds since the run began.
        """
        del self._ttft[:-_LATEST], self._gaps[:-_LATEST]
        parts = [
            f"{self.title}  {self._ended}/{self.total} done",
            f"{self._sent - self._ended} running",
            f"{self._sent / now if now else 0:.2f} sent/s",
        ]
        if self._failed:
            parts.append(f"{self._failed} failed")
        for name, values, shown in (
            ("TTFT", self._ttft, seconds),
            ("TBT", self._gaps, milliseconds),
        ):
            if values:
                p50, p99 = np.percentile(values, (50, 99))
                parts.append(f"{name} P50 {shown(p50)} P99 {shown(p99)}")
        return "  ".join(parts)
