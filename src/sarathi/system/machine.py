"""What of this machine is ours: less than all of it in a container or under an affinity mask."""

from __future__ import annotations

import math
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from sarathi.system.cgroups import cpu_quota, memory_left, memory_limit

# Some libraries look at every descriptor that there might be, which takes them seconds to hours
# where the hard limit is a thousand million, as some containers have it.
_MOST_DESCRIPTORS = 65536
_LEAST_MOST_DESCRIPTORS = 10240  # that macOS grants, whatever it says the hard limit is


def processor_name() -> str:
    """The name that its maker has given it, or what kind it is."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_processors() -> frozenset[int]:
    """Logical processors that this thread may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """Physical cores that this process may keep busy, at least 1."""
    cores = os.cpu_count() or 1  # not all systems say which processors share a core
    with suppress(OSError):
        cores = psutil.cpu_count(logical=False) or cores
    cores = min(cores, len(usable_processors()))
    quota = cpu_quota()
    if quota is not None:
        cores = min(cores, math.ceil(quota))
    return max(1, cores)


def available_memory() -> int:
    """Bytes that this process can still get."""
    free, left = _memory("available", "SC_AVPHYS_PAGES"), memory_left()
    return free if left is None else min(free, left)


def total_memory() -> int:
    """Bytes of this machine, or of the part of it that this process is confined to."""
    total, limit = _memory("total", "SC_PHYS_PAGES"), memory_limit()
    return total if limit is None else min(total, limit)


def raise_descriptor_limit() -> int:
    """Let this process open as many files and connections as it may, to a bound.

    Returns:
        How many it may have open from now on.
    """
    try:
        import resource
    except ImportError:  # Windows, where no such limit is in the way
        return sys.maxsize
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (_MOST_DESCRIPTORS, _LEAST_MOST_DESCRIPTORS):
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # macOS names a hard limit that it does not grant
            continue
        break
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def _memory(field: str, pages: str) -> int:
    """Bytes of the whole machine.

    Args:
        field: of `psutil.virtual_memory`.
        pages: what `sysconf` calls it, for a service that /proc/meminfo is hidden from.
    """
    try:
        return int(getattr(psutil.virtual_memory(), field))
    except OSError:
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
