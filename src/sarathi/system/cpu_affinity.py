"""Cores of its own for each process of an engine."""

from __future__ import annotations

import os
from pathlib import Path

from sarathi.system.machine import usable_cores

_TOPOLOGY = Path("/sys/devices/system/cpu")


def physical_cores() -> list[frozenset[int]]:
    """The logical processors of each core that this thread may run on; none if that is unknown."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    allowed = os.sched_getaffinity(0)
    cores: dict[tuple[int, int], set[int]] = {}
    for cpu in sorted(allowed):
        cores.setdefault(_core(cpu), set()).add(cpu)
    return [frozenset(cores[core]) for core in sorted(cores)]


def own_cores(
    neighbour: int, neighbours: int, threads: int, cores: list[frozenset[int]], usable: int
) -> frozenset[int] | None:
    """The logical processors that a process should keep to.

    Two stages that computed all the time have been seen to share one core for seconds, while the
    other was all but idle. Where not all of the machine is theirs, processes must not choose, or
    others would choose the same.

    Args:
        neighbour: the number of this process among `neighbours` of one engine on this machine.
        threads: of each.
        cores: see `physical_cores`.
        usable: how many of them a container may keep busy; see `usable_cores`.

    Returns:
        None where all that are free should be left to the kernel.
    """
    if usable != len(cores) or threads != len(cores) // neighbours:
        return None
    first = neighbour * threads
    return frozenset().union(*cores[first : first + threads])


def keep_to_own_cores(neighbour: int, neighbours: int, threads: int) -> None:
    """Bind this thread, and those that it will start; see `own_cores`."""
    chosen = own_cores(neighbour, neighbours, threads, physical_cores(), usable_cores())
    if chosen:
        os.sched_setaffinity(0, chosen)


def _core(cpu: int) -> tuple[int, int]:
    """Package and core of a logical processor; each its own where the system does not say."""
    folder = _TOPOLOGY / f"cpu{cpu}" / "topology"
    try:
        package = int((folder / "physical_package_id").read_text())
        return package, int((folder / "core_id").read_text())
    except (OSError, ValueError):
        return -1, cpu
