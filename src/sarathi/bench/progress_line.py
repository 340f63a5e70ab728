"""A run as it goes, in one line of a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from sarathi.bench.number_format import milliseconds, seconds
from sarathi.telemetry import RequestRecord

_INTERVAL = 1.0  # seconds between two pictures: drawing one takes a millisecond from the client
_LATEST = 5000  # values that percentiles are taken of


class ProgressLine:
    """A `Watch` that shows what is sent, what runs, and the latest percentiles."""

    def __init__(self, title: str, total: int, live: Live) -> None:
        """
        Args:
            total: requests, the warm-up included.
            live: started by the caller, without a refresh of its own.
        """
        self._title = title
        self._total = total
        self._live = live
        self._arrivals: dict[int, float] = {}
        self._latest: dict[int, float] = {}
        self._ttft: list[float] = []
        self._gaps: list[float] = []
        self._sent = 0
        self._ended = 0
        self._failed = 0
        self._drawn = 0.0

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

    def verdict(self, now: float) -> str | None:
        """Never stops a run; a picture a second is drawn here."""
        if now - self._drawn >= _INTERVAL:
            self._drawn = now
            self._live.update(Text(self.line(now)), refresh=True)
        return None

    def line(self, now: float) -> str:
        """
        Args:
            now: seconds since the run began.
        """
        del self._ttft[:-_LATEST], self._gaps[:-_LATEST]
        parts = [
            f"{self._title}  {self._ended}/{self._total} done",
            f"{self._sent - self._ended} running",
            f"{self._sent / now if now else 0:.2f} sent/s",
        ]
        if self._failed:
            parts.append(f"{self._failed} failed")
        if self._ttft:
            p50, p99 = np.percentile(self._ttft, (50, 99))
            parts.append(f"TTFT P50 {seconds(p50)} P99 {seconds(p99)}")
        if self._gaps:
            p50, p99 = np.percentile(self._gaps, (50, 99))
            parts.append(f"TBT P50 {milliseconds(p50)} P99 {milliseconds(p99)}")
        return "  ".join(parts)


def terminal() -> Console | None:
    """Where progress is shown: standard error, if it is a terminal."""
    console = Console(stderr=True)
    return console if console.is_terminal else None
