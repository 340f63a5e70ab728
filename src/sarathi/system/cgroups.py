"""Limits of the control groups (cgroups) of this process, of version 1 and 2."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc/self")
_ESCAPE = re.compile(r"\\([0-7]{3})")  # of blanks in `mountinfo`


@dataclass(frozen=True)
class _Mount:
    """A mounted hierarchy of groups."""

    point: Path
    root: str  # the group at that point
    version: int
    controllers: frozenset[str]  # none in version 2, which has all in one hierarchy


@dataclass(frozen=True)
class _Files:
    """The names of files and fields in one version."""

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

    Args:
        proc: the folder of the process in the file system of processes.
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
    own = list(_own_groups(proc))
    for mount in _mounts(proc):
        if mount.version == 1 and controller not in mount.controllers:
            continue
        for controllers, path in own:
            if controller in controllers if mount.version == 1 else not controllers:
                folder = _folder(mount, path)
                yield folder, mount.version
                while folder != mount.point:
                    folder = folder.parent
                    yield folder, mount.version


def _folder(mount: _Mount, path: str) -> Path:
    """Return the folder of a group; the uppermost where the group is not visible from here."""
    parts = [part for part in path.split("/") if part]
    root = [part for part in mount.root.split("/") if part]
    if parts[: len(root)] != root or ".." in parts:
        return mount.point
    return mount.point.joinpath(*parts[len(root) :])


def _own_groups(proc: Path) -> Iterator[tuple[frozenset[str], str]]:
    """Yield controllers (none for version 2) and the path of the group that sets them."""
    for line in _text(proc / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon:
            known = frozenset(controllers.split(",")) if controllers else frozenset()
            if known or number == "0":
                yield known, path


def _mounts(proc: Path) -> Iterator[_Mount]:
    for line in _text(proc / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(" "), after.split(" ")
        if len(fields) < 5 or kinds[0] not in ("cgroup", "cgroup2"):
            continue
        options = frozenset(kinds[-1].split(","))
        version = 2 if kinds[0] == "cgroup2" else 1
        yield _Mount(Path(_plain(fields[4])), _plain(fields[3]), version, options)


def _plain(escaped: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), escaped)


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
