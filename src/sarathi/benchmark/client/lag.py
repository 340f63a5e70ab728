"""How late the client itself was."""

from __future__ import annotations

from array import array
from time import process_time

import numpy as np

from sarathi.benchmark.results import Lag

INTERVAL = 0.01  # seconds between two heartbeats


class LagMeter:
    """Collects how late heartbeats and requests were."""

    def __init__(self) -> None:
        self._late = array("d")
        self._due = INTERVAL
        self._cpu = process_time()

    @property
    def due(self) -> float:
        """When the next heartbeat should be, in seconds since the run began."""
        return self._due

    def beat(self, now: float) -> None:
        """A heartbeat that came late stands for all that were due meanwhile: each of them is a
        moment at which an event would have waited."""
        while self._due <= now:
            self._late.append(now - self._due)
            self._due += INTERVAL

    def sent(self, late: float) -> None:
        self._late.append(late)

    def result(self, seconds: float) -> Lag:
        """
        Args:
            seconds: since this object was made.
        """
        late = self._late or array("d", [0.0])
        p50, p99 = np.percentile(late, (50, 99), method="inverted_cdf")
        return Lag(
            p50=float(p50),
            p99=float(p99),
            max=max(late),
            cpu=(process_time() - self._cpu) / seconds if seconds > 0 else 0.0,
        )
