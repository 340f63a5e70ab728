"""Contention: how much other processes use the processors that this one computes on."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

import psutil

from sarathi.system.machine import usable_processors

# Threads that compute together are not on a processor all the time: they wait for each other.
_UTILISATION = 0.9
# Times in which a processor is busy. That of guests is in the time of users already.
_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")
_TOLERATED = 0.1  # of what this process needs, that others may use on a quiet machine


class CpuTimes(NamedTuple):
    """Clocks, in seconds from some moment, and the number of processors."""

    clock: float
    own: float  # processor time of this process, over all of its threads
    busy: float  # processor time of all processes, on the processors that it may run on
    processors: int  # how many these are


def cpu_times() -> CpuTimes:
    """Read the clocks. Other processes count as idle where the system does not measure them."""
    own = time.process_time()
    try:
        found = psutil.cpu_times(percpu=True)
        allowed = usable_processors()
        used = [times for processor, times in enumerate(found) if processor in allowed]
        busy = sum(getattr(times, name, 0.0) for times in used for name in _BUSY)
    except (OSError, RuntimeError, ValueError):
        return CpuTimes(time.perf_counter(), own, own, os.cpu_count() or 1)
    return CpuTimes(time.perf_counter(), own, busy, len(used))


def was_quiet(before: CpuTimes, after: CpuTimes, threads: int) -> bool:
    """Return whether all threads of this process had processors in between."""
    seconds = after.clock - before.clock
    if seconds <= 0:
        return True
    others = (after.busy - before.busy - (after.own - before.own)) / seconds
    return others <= after.processors - threads + _TOLERATED * threads


def undisturbed(seconds: float, own: float, threads: int) -> float:
    """Estimate the seconds of a computation without other processes on its processors.

    `own` is the processor time of this process meanwhile, of which so many `threads` compute.
    """
    return min(seconds, own / (_UTILISATION * threads)) if own > 0 else seconds
