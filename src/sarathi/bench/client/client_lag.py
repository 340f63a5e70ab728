"""How late the client itself was."""

from __future__ import annotations

from array import array
from time import process_time

import numpy as np
import numpy.typing as npt

from sarathi.bench.results import Lag

INTERVAL = 0.01  # seconds between two heartbeats


class LagMeter:
    """Collects how late heartbeats and requests were.

    They are kept apart: at low rates there are far more heartbeats than requests, among which late
    requests would not be seen.
    """

    def __init__(self) -> None:
        self._beats = array("d")
        self._sends = array("d")
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
            self._beats.append(now - self._due)
            self._due += INTERVAL

    def sent(self, late: float) -> None:
        self._sends.append(late)

    def result(self, seconds: float) -> Lag:
        """
        Args:
            seconds: since this object was made.
        """
        p50, p99, most = np.maximum(_percentiles(self._beats), _percentiles(self._sends))
        return Lag(
            p50=float(p50),
            p99=float(p99),
            max=float(most),
            cpu=(process_time() - self._cpu) / seconds if seconds > 0 else 0.0,
        )


def _percentiles(late: array[float]) -> npt.NDArray[np.float64]:
    """The 50th, the 99th and the 100th."""
    values = late or array("d", [0.0])
    found: npt.NDArray[np.float64] = np.percentile(values, (50, 99, 100), method="inverted_cdf")
    return found
