"""Arrival times: random processes with a rate, and the times of a trace."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sarathi.errors import BenchmarkError

Times = npt.NDArray[np.float64]

TRACE = "trace"

_VARIATIONS = {"poisson": 1.0, "constant": 0.0}
_MAX_VARIATION = 10.0


@dataclass(frozen=True)
class ArrivalProcess:
    """Independent gaps of a gamma distribution.

    `variation` is the coefficient of variation of the gaps: 1 makes a Poisson process, less is more
    regular (0: constant gaps), more comes in bursts.
    """

    text: str  # as it was typed
    variation: float

    def times(self, count: int, rate: float, rng: np.random.Generator) -> Times:
        """Return the times of `count` requests in seconds, the last exactly at `count / rate`.

        The gaps are sampled, then rescaled, so that chance does not change the load. A Poisson
        process stays one for which the time of the last arrival is given: the others are uniform
        in that time, as sums of exponential gaps over their total are.
        """
        if not count:
            return np.empty(0)
        gaps = np.ones(count)
        if self.variation > 1e-6:  # below, they count as constant
            sampled = rng.gamma(1 / self.variation**2, size=count)
            # A few very irregular gaps may all be too small for a number.
            gaps = sampled if sampled.sum() > 0 else gaps
        times: Times = np.cumsum(gaps)
        times *= count / rate / times[-1]
        times[-1] = count / rate
        return times


def process_from(text: str) -> ArrivalProcess | None:
    """Parse an arrival process, None for the times of a trace; raise BenchmarkError for others."""
    if text == TRACE:
        return None
    if text in _VARIATIONS:
        return ArrivalProcess(text, _VARIATIONS[text])
    if not text.startswith("gamma:"):
        raise BenchmarkError(
            f"--arrivals {text!r} is unknown; accepted are poisson, gamma:CV, constant and trace"
        )
    try:
        variation = float(text.removeprefix("gamma:"))
    except ValueError:
        variation = math.nan
    if not 0 < variation <= _MAX_VARIATION:
        raise BenchmarkError(
            f"--arrivals {text!r}: the coefficient of variation must be above 0 and at most "
            f"{_MAX_VARIATION:g}"
        )
    return ArrivalProcess(text, variation)


def stretched(times: Times, warm_up: int, rate: float | None) -> tuple[Times, float]:
    """Shift the times of a trace to start at 0, and stretch them to a mean rate if one is given.

    Return also for how long measuring lasts. It begins with the last request of the warm-up, so
    that each measured request comes with the gap before it.

    Raises:
        BenchmarkError: all requests arrive at once, which no stretching gives a rate.
    """
    times = times - times[0]
    span = float(times[-1] - times[max(warm_up - 1, 0)])
    if rate is None:
        return times, span
    if not span > 0:
        raise BenchmarkError(
            f"--rate {rate:g} cannot be kept: the requests of the trace all arrive at once"
        )
    measured = (len(times) - warm_up) / rate
    return times * (measured / span), measured
