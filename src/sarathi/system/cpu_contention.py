"""What others take of the processors that this process computes on."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

import psutil

from sarathi.system.machine import usable_processors

# Threads that all compute are hardly ever all on a processor: they wait for each other, too.
_UTILISATION = 0.9
_TOLERATED = 0.1  # of what this process needs, that others may take of a quiet machine


class CpuTimes(NamedTuple):
    """Seconds since some moment."""

    clock: float
    own: float  # that this process has computed, over all of its threads
    busy: float  # the same of everything on the processors that it may run on
    processors: int  # how many these are


def cpu_times() -> CpuTimes:
    """Read the clocks. Where the system has none for others, they are taken to be idle."""
    own = time.process_time()
    try:
        found = psutil.cpu_times(percpu=True)
        allowed = usable_processors()
        used = [times for processor, times in enumerate(found) if processor in allowed]
        busy = sum(map(_busy, used))
    except (OSError, RuntimeError, ValueError):
        return CpuTimes(time.perf_counter(), own, own, os.cpu_count() or 1)
    return CpuTimes(time.perf_counter(), own, busy, len(used))


def was_quiet(before: CpuTimes, after: CpuTimes, threads: int) -> bool:
    """Whether there were processors for all threads of this process in between."""
    seconds = after.clock - before.clock
    if seconds <= 0:
        return True
    others = (after.busy - before.busy - (after.own - before.own)) / seconds
    return others <= after.processors - threads + _TOLERATED * threads


def undisturbed(seconds: float, own: float, threads: int) -> float:
    """Estimate what a computation would have taken, had others not used its processors.

    Args:
        seconds: that it took.
        own: seconds that all threads of this process computed meanwhile.
        threads: that take part.
    """
    return min(seconds, own / (_UTILISATION * threads)) if own > 0 else seconds


def _busy(times: object) -> float:
    """Of one processor. Guests are in the time of users already."""

    def field(name: str) -> float:
        return float(getattr(times, name, 0.0))

    return sum(map(field, ("user", "nice", "system", "irq", "softirq", "steal")))
