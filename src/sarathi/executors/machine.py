"""What of this machine is ours: less than all of it in a container or under an affinity mask."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")  # version 2, as seen from inside a container


def usable_cores() -> int:
    """Physical cores that this process may keep busy, at least 1."""
    cores = psutil.cpu_count(logical=False) or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no such group, or the quota is "max"
        pass
    return max(1, cores)


def available_memory() -> int:
    """Bytes that this process can still get."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no such group, or the limit is "max"
        return free
    return max(0, min(free, limit - used))
