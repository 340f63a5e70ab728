"""The cores and the memory that this process may use: in a container less than the machine's."""

from __future__ import annotations

import math
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from sarathi.system.cgroups import cpu_quota, memory_left, memory_limit

_TOPOLOGY = Path("/sys/devices/system/cpu")
# Some libraries visit every possible descriptor, which takes seconds to hours where the hard limit
# is a thousand million, as in some containers.
_MAX_DESCRIPTORS = 65536
_MAX_DESCRIPTORS_MACOS = 10240  # that it grants, whatever hard limit it reports


def processor_name() -> str:
    """Return the product name of the processor, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_processors() -> frozenset[int]:
    """Return the logical processors that this thread may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """Count the physical cores that this process may keep busy, at least 1."""
    cores = os.cpu_count() or 1  # not all systems report which processors share a core
    with suppress(OSError):
        cores = psutil.cpu_count(logical=False) or cores
    cores = min(cores, len(usable_processors()))
    quota = cpu_quota()
    if quota is not None:
        cores = min(cores, math.ceil(quota))
    return max(1, cores)


def available_memory() -> int:
    """Return the bytes that this process can still allocate."""
    free, left = _memory("available", "SC_AVPHYS_PAGES"), memory_left()
    return free if left is None else min(free, left)


def total_memory() -> int:
    """Return the bytes of this machine, or of the part that this process is limited to."""
    total, limit = _memory("total", "SC_PHYS_PAGES"), memory_limit()
    return total if limit is None else min(total, limit)


def raise_descriptor_limit() -> int:
    """Raise the number of files and connections that this process may open, up to a bound.

    Returns:
        How many it may have open from now on.
    """
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return sys.maxsize
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (_MAX_DESCRIPTORS, _MAX_DESCRIPTORS_MACOS):
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # macOS reports a hard limit that it does not grant
            continue
        break
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def physical_cores() -> list[frozenset[int]]:
    """Return the logical processors of each core that this thread may run on; none if unknown."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    allowed = os.sched_getaffinity(0)
    cores: dict[tuple[int, int], set[int]] = {}
    for cpu in sorted(allowed):
        cores.setdefault(_core(cpu), set()).add(cpu)
    return [frozenset(cores[core]) for core in sorted(cores)]


def cores_of_process(
    local_rank: int, local_world_size: int, threads: int, cores: list[frozenset[int]], usable: int
) -> frozenset[int] | None:
    """Choose the logical processors that a process should be pinned to.

    Without pinning, two stages that computed all the time have been seen to share one core for
    seconds while the other was almost idle. Processes that do not have the whole machine must not
    choose, or those of other engines would choose the same cores.

    Args:
        local_rank: number of this process among `local_world_size` of one engine on this machine.
        threads: of each process.
        cores: see `physical_cores`.
        usable: how many of them a container may keep busy; see `usable_cores`.

    Returns:
        None where scheduling should be left to the kernel.
    """
    if usable != len(cores) or threads != len(cores) // local_world_size:
        return None
    first = local_rank * threads
    return frozenset().union(*cores[first : first + threads])


def pin_to_cores(local_rank: int, local_world_size: int, threads: int) -> None:
    """Pin this thread, and those that it will start; see `cores_of_process`."""
    cores = physical_cores()
    chosen = cores_of_process(local_rank, local_world_size, threads, cores, usable_cores())
    if chosen:
        os.sched_setaffinity(0, chosen)


def _memory(field: str, pages: str) -> int:
    """Return the bytes of the whole machine.

    Args:
        field: of `psutil.virtual_memory`.
        pages: name for `sysconf`, which works where /proc/meminfo is hidden.
    """
    try:
        return int(getattr(psutil.virtual_memory(), field))
    except OSError:
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _core(cpu: int) -> tuple[int, int]:
    """Return package and core of a logical processor; a core each where the system has no data."""
    folder = _TOPOLOGY / f"cpu{cpu}" / "topology"
    try:
        package = int((folder / "physical_package_id").read_text())
        return package, int((folder / "core_id").read_text())
    except (OSError, ValueError):
        return -1, cpu
