"""The cores and the memory that this process may use: in a container less than the machine's."""

from __future__ import annotations

import math
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

_TOPOLOGY = Path("/sys/devices/system/cpu")
# Some libraries visit every possible descriptor, which takes seconds to hours where the hard limit
# is a thousand million, as in some containers.
_MAX_DESCRIPTORS = 65536
_MAX_DESCRIPTORS_MACOS = 10240  # that it grants, whatever hard limit it reports
_PROC = Path("/proc/self")
_ESCAPE = re.compile(r"\\([0-7]{3})")  # of blanks in `mountinfo`


class _Files(NamedTuple):
    """The names of files and fields in one version of control groups."""

    limits: tuple[str, ...]  # bytes
    used: str
    cache: tuple[str, ...]  # lines of memory.stat


# Beyond `memory.high` a group is throttled so hard that it might as well be a limit. Version 1
# counts the usage of the groups below in separate fields.
_MEMORY = {
    1: _Files(
        ("memory.limit_in_bytes",),
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
    2: _Files(("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file")),
}


def memory_limit(proc: Path = _PROC) -> int | None:
    """Return the bytes that the group of this process may use; None where nothing limits it.

    `proc` is the folder of the process in the file system of processes.
    """
    limits = [_limit(group, version) for group, version in _groups("memory", proc)]
    return min((limit for limit in limits if limit is not None), default=None)


def memory_left(proc: Path = _PROC) -> int | None:
    """Return the bytes that this process can still allocate; None where nothing limits it.

    Every group that contains its own may have a limit, so the least of all of them counts. Page
    cache is free: the kernel reclaims it first. That includes the part in recent use, as in what
    the kernel reports as the available memory of a whole machine. Otherwise a model's own file,
    read twice, would leave no memory for the model.
    """
    left = []
    for group, version in _groups("memory", proc):
        limit = _limit(group, version)
        files = _MEMORY[version]
        used = _number(group / files.used)
        if limit is not None and used is not None:
            cache = sum(_stat(group).get(name, 0) for name in files.cache)
            left.append(max(0, limit - max(0, used - cache)))
    return min(left, default=None)


def cpu_quota(proc: Path = _PROC) -> float | None:
    """Return how many processors' time this process may use; None where nothing limits it."""
    quotas = [_quota(group, version) for group, version in _groups("cpu", proc)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _limit(group: Path, version: int) -> int | None:
    found = [_number(group / name) for name in _MEMORY[version].limits]
    if version == 1:  # of a group above, which may not be visible in a container
        found.append(_stat(group).get("hierarchical_memory_limit"))
    return min((limit for limit in found if limit is not None), default=None)


def _quota(group: Path, version: int) -> float | None:
    if version == 2:
        quota, _, period = _text(group / "cpu.max").partition(" ")
    else:
        quota = _text(group / "cpu.cfs_quota_us")
        period = _text(group / "cpu.cfs_period_us")
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # there is none, or it is "max"
        return None
    return share if share > 0 else None  # -1: no limit


def _groups(controller: str, proc: Path) -> Iterator[tuple[Path, int]]:
    """Yield the folders of this process's groups, with their version, from its own upwards."""
    lines = _text(proc / "cgroup").splitlines()
    own = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    for line in _text(proc / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(" "), after.split(" ")
        if len(fields) < 5 or kinds[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if kinds[0] == "cgroup2" else 1
        if version == 1 and controller not in kinds[-1].split(","):
            continue
        root, point = (_ESCAPE.sub(lambda found: chr(int(found[1], 8)), f) for f in fields[3:5])
        for number, controllers, path in own:
            # Version 2 has all controllers in one hierarchy, and so names none.
            is_unified = number == "0" and not controllers
            if is_unified if version == 2 else controller in controllers.split(","):
                folder = _folder(Path(point), root, path)
                yield folder, version
                while folder != Path(point):
                    folder = folder.parent
                    yield folder, version


def _folder(point: Path, root: str, path: str) -> Path:
    """Return the folder of a group, or the mount `point` of `root` if it is not visible."""
    parts = [part for part in path.split("/") if part]
    above = [part for part in root.split("/") if part]
    if parts[: len(above)] != above or ".." in parts:
        return point
    return point.joinpath(*parts[len(above) :])


def _stat(group: Path) -> dict[str, int]:
    found = {}
    for line in _text(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if value.isdecimal():
            found[name] = int(value)
    return found


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None  # "max" is no limit


def _text(path: Path) -> str:
    """Read a file; return nothing if it cannot be read: an invisible limit is ignored."""
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


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
    """Raise the number of files and connections that this process may open, and return it."""
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
    cores: dict[tuple[int, int], set[int]] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        cores.setdefault(_core(cpu), set()).add(cpu)
    return [frozenset(cores[core]) for core in sorted(cores)]


def cores_of_process(
    local_rank: int, local_world_size: int, threads: int, cores: list[frozenset[int]], usable: int
) -> frozenset[int] | None:
    """Choose the logical processors to pin a process to; None to leave that to the kernel.

    Without pinning, two stages that computed all the time have been seen to share one core for
    seconds while the other was almost idle. Processes that do not have the whole machine must not
    choose, or those of other engines would choose the same cores.

    Args:
        local_rank: number of this process among `local_world_size` of one engine on this machine.
        threads: of each process.
        cores: see `physical_cores`.
        usable: how many of them a container may keep busy; see `usable_cores`.
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
    """Return bytes of the whole machine; `sysconf` works where /proc/meminfo is hidden."""
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
