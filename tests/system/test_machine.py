from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sarathi.system import machine

GIB = 2**30


class Groups:
    """A tree of control groups, and the process that looks at it."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.proc.mkdir()
        self._folder = folder
        self._mounts = ["22 1 8:1 / / rw - ext4 /dev/sda rw\n"]

    def mount(self, name: str, kind: str, options: str = "rw", root: str = "/") -> Path:
        """A hierarchy, of which the group `root` can be seen."""
        point = self._folder / name
        point.mkdir(parents=True)
        escaped = str(point).replace(" ", "\\040")
        line = f"31 23 0:28 {root} {escaped} rw,nosuid shared:7 - {kind} cgroup {options}\n"
        self._mounts.append(line)
        (self.proc / "mountinfo").write_text("".join(self._mounts))
        return point

    def own(self, *lines: str) -> None:
        (self.proc / "cgroup").write_text("".join(f"{line}\n" for line in lines))

    def left(self) -> int | None:
        return machine.memory_left(self.proc)

    def quota(self) -> float | None:
        return machine.cpu_quota(self.proc)


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    return Groups(tmp_path)


def write(folder: Path, **files: object) -> None:
    """Files of a group; `_` stands for the first point of a name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{text}\n")


class TestVersion2:
    @pytest.fixture
    def root(self, groups: Groups) -> Path:
        groups.own("0::/")
        return groups.mount("sys fs/cgroup", "cgroup2", "rw,nsdelegate")

    def test_page_cache_is_free(self, groups: Groups, root: Path) -> None:
        stat = f"anon {3 * GIB}\ninactive_file {12 * GIB}\nslab_reclaimable 7"
        write(root, memory_max=16 * GIB, memory_current=15 * GIB, memory_stat=stat)
        assert groups.left() == 13 * GIB
        stat = f"inactive_file {5 * GIB}\nactive_file {6 * GIB}"
        write(root, memory_stat=stat)
        assert groups.left() == 12 * GIB

    def test_nothing_is_left_where_all_is_used(self, groups: Groups, root: Path) -> None:
        write(root, memory_max=900, memory_current=1000)
        assert groups.left() == 0

    def test_a_group_without_limit(self, groups: Groups, root: Path) -> None:
        write(root, memory_max="max", memory_high="max", memory_current=1, cpu_max="max 100000")
        assert groups.left() is None
        assert groups.quota() is None
        assert machine.memory_limit(groups.proc) is None

    def test_throttling_is_a_limit(self, groups: Groups, root: Path) -> None:
        write(root, memory_max="max", memory_high=3000, memory_current=1000)
        assert groups.left() == 2000
        assert machine.memory_limit(groups.proc) == 3000

    def test_the_least_of_all_groups_above(self, groups: Groups, root: Path) -> None:
        groups.own("0::/work.slice/server.service/inner")
        write(root / "work.slice", memory_max=5000, memory_current=4000, cpu_max="150000 100000")
        write(root / "work.slice/server.service", memory_max=3000, memory_current=1000)
        write(root / "work.slice/server.service", cpu_max="400000 100000")
        write(root / "work.slice/server.service/inner", memory_max="max", memory_current=10)
        write(root / "work.slice/other", memory_max=1, memory_current=1, cpu_max="1 100000")
        assert groups.left() == 1000
        assert machine.memory_limit(groups.proc) == 3000
        assert groups.quota() == 1.5

    @pytest.mark.parametrize("text", ["", "max", "100000", "x y", "0 0", "100000 0", "-1 100000"])
    def test_a_quota_that_is_none(self, text: str, groups: Groups, root: Path) -> None:
        write(root, cpu_max=text)
        assert groups.quota() is None


class TestVersion1:
    def test_limits_of_memory(self, groups: Groups) -> None:
        groups.own("4:memory:/box", "1:cpu,cpuacct:/", "0::/")
        memory = groups.mount("cgroup/memory", "cgroup", "rw,memory") / "box"
        stat = f"inactive_file 1\ntotal_inactive_file {12 * GIB}\ntotal_active_file 0"
        write(memory)
        (memory / "memory.limit_in_bytes").write_text(f"{16 * GIB}\n")
        (memory / "memory.usage_in_bytes").write_text(f"{15 * GIB}\n")
        (memory / "memory.stat").write_text(stat)
        assert groups.left() == 13 * GIB
        # A group above that a container does not see has less.
        (memory / "memory.stat").write_text(f"{stat}\nhierarchical_memory_limit {8 * GIB}\n")
        assert groups.left() == 5 * GIB

    def test_a_number_that_means_unlimited(
        self, groups: Groups, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        groups.own("4:memory:/")
        memory = groups.mount("cgroup/memory", "cgroup", "rw,memory")
        (memory / "memory.limit_in_bytes").write_text("9223372036854771712\n")
        (memory / "memory.usage_in_bytes").write_text("1000\n")
        left = groups.left()
        monkeypatch.setattr(machine, "memory_left", lambda: left)
        free = psutil.virtual_memory()
        monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
        assert machine.available_memory() == free.available

    @pytest.mark.parametrize(("quota", "processors"), [(250000, 2.5), (-1, None)])
    def test_limits_of_time(self, quota: int, processors: float | None, groups: Groups) -> None:
        groups.own("4:memory:/box", "3:cpu,cpuacct:/box/in", "1:name=systemd:/else")
        cpu = groups.mount("cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct") / "box/in"
        cpu.mkdir(parents=True)
        (cpu / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (cpu / "cpu.cfs_period_us").write_text("100000\n")
        assert groups.quota() == processors
        (cpu.parent / "cpu.cfs_quota_us").write_text("100000\n")
        (cpu.parent / "cpu.cfs_period_us").write_text("100000\n")
        assert groups.quota() == 1.0

    def test_together_with_version_2(self, groups: Groups) -> None:
        groups.own("4:memory:/", "0::/")
        memory = groups.mount("cgroup/memory", "cgroup", "rw,memory")
        unified = groups.mount("cgroup/unified", "cgroup2")
        (memory / "memory.limit_in_bytes").write_text("3000\n")
        (memory / "memory.usage_in_bytes").write_text("1000\n")
        write(unified, cpu_max="max 100000")
        assert groups.left() == 2000


@pytest.mark.parametrize(
    ("root", "own"),
    [
        ("/docker/123", "/docker/123"),  # the container's own group, named as outside of it
        ("/", "/docker/123"),  # of which it sees the inside only
        ("/docker/123", "/elsewhere"),
        ("/", "/../../sibling"),
        ("/..", "/"),
    ],
)
def test_a_container_sees_its_own_group_at_the_top(root: str, own: str, groups: Groups) -> None:
    groups.own(f"0::{own}")
    write(groups.mount("cgroup", "cgroup2", root=root), memory_max=3000, memory_current=1000)
    assert groups.left() == 2000


@pytest.mark.parametrize("what", ["nothing", "nonsense"])
def test_what_cannot_be_read_limits_nothing(what: str, groups: Groups) -> None:
    if what == "nonsense":
        groups.own("", ":", "0::", "x", "4:memory")
        root = groups.mount("cgroup", "cgroup2")
        (root / "memory.max").write_bytes(b"\xff\xfe")
        (root / "memory.current").mkdir()
        (root / "memory.stat").write_text("inactive_file\n\nx y z\n")
        (root / "cpu.max").mkdir()
        with (groups.proc / "mountinfo").open("a") as file:
            file.write("\nshort - cgroup2\n- \nx\n")
    assert groups.left() is None
    assert groups.quota() is None
    assert machine.memory_limit(groups.proc) is None


class TestCores:
    @pytest.fixture(autouse=True)
    def eight_cores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(psutil, "cpu_count", lambda logical: 8)
        monkeypatch.setattr(os, "cpu_count", lambda: 16)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
        monkeypatch.setattr(machine, "cpu_quota", lambda: None)

    def test_all_physical_ones(self) -> None:
        assert machine.usable_cores() == 8

    def test_all_processors_where_the_system_does_not_report_which_share_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(psutil, "cpu_count", lambda logical: None)
        assert machine.usable_cores() == 16

    def test_those_of_the_affinity_mask(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 6})
        assert machine.usable_cores() == 3

    @pytest.mark.parametrize(("quota", "cores"), [(2.5, 3), (0.5, 1), (16.0, 8), (0.001, 1)])
    def test_those_of_the_containers_quota(
        self, quota: float, cores: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
        assert machine.usable_cores() == cores


class TestMemory:
    def test_what_the_machine_has_free(self) -> None:
        assert 0 < machine.available_memory() <= machine.total_memory()

    def test_what_the_container_allows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "memory_left", lambda: 1000)
        monkeypatch.setattr(machine, "memory_limit", lambda: 3000)
        assert (machine.available_memory(), machine.total_memory()) == (1000, 3000)

    def test_a_service_that_sees_no_memory_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def hidden() -> None:
            raise FileNotFoundError("/proc/meminfo")

        monkeypatch.setattr(psutil, "virtual_memory", hidden)
        assert 0 < machine.available_memory() <= machine.total_memory()


class TestDescriptors:
    """With the limits of an imaginary system."""

    @pytest.fixture
    def system(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
        def with_limits(soft: int, hard: int, grants: int | None = None) -> list[int]:
            limits = [soft, hard]

            def change(kind: int, wanted: tuple[int, int]) -> None:
                if grants is not None and wanted[0] > grants:
                    raise ValueError("current limit exceeds maximum limit")
                limits[:] = wanted

            monkeypatch.setattr(resource, "getrlimit", lambda kind: tuple(limits))
            monkeypatch.setattr(resource, "setrlimit", change)
            return limits

        return with_limits

    @pytest.mark.parametrize(
        ("soft", "hard", "raised"),
        [
            (128, 4096, 4096),
            (1024, 2**30, 65536),
            (1024, resource.RLIM_INFINITY, 65536),
            (4096, 4096, 4096),
            (100_000, 2**20, 100_000),  # never lowered
        ],
    )
    def test_the_hard_limit_to_a_bound(
        self, soft: int, hard: int, raised: int, system: Callable[..., list[int]]
    ) -> None:
        limits = system(soft, hard)
        assert machine.raise_descriptor_limit() == raised
        assert limits == [raised, hard]

    def test_no_limit(self, system: Callable[..., list[int]]) -> None:
        unlimited = resource.RLIM_INFINITY
        limits = system(unlimited, unlimited)
        assert machine.raise_descriptor_limit() == sys.maxsize
        assert limits == [unlimited, unlimited]

    def test_a_hard_limit_that_is_not_granted(self, system: Callable[..., list[int]]) -> None:
        """As on macOS, where no process may have more than the kernel reports elsewhere."""
        system(256, resource.RLIM_INFINITY, grants=10240)
        assert machine.raise_descriptor_limit() == 10240

    def test_what_cannot_be_raised_is_returned(self, system: Callable[..., list[int]]) -> None:
        system(256, 4096, grants=0)
        assert machine.raise_descriptor_limit() == 256

    def test_of_this_process(self) -> None:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            raised = machine.raise_descriptor_limit()
            assert raised >= min(before[0], 65536)
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == before[1]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
