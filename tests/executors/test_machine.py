from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from sarathi.executors import machine


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    return tmp_path


class TestCores:
    @pytest.fixture(autouse=True)
    def eight_cores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(psutil, "cpu_count", lambda logical: 8)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)

    def test_all_physical_ones(self, cgroup: Path) -> None:
        assert machine.usable_cores() == 8

    def test_those_of_the_affinity_mask(
        self, cgroup: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 6})
        assert machine.usable_cores() == 3

    @pytest.mark.parametrize(
        ("quota", "cores"),
        [("max 100000", 8), ("250000 100000", 3), ("50000 100000", 1), ("1600000 100000", 8)],
    )
    def test_those_of_the_containers_quota(self, cgroup: Path, quota: str, cores: int) -> None:
        (cgroup / "cpu.max").write_text(quota)
        assert machine.usable_cores() == cores


class TestMemory:
    def test_what_the_machine_has_free(self, cgroup: Path) -> None:
        assert machine.available_memory() > 0

    def test_what_the_container_allows(self, cgroup: Path) -> None:
        (cgroup / "memory.current").write_text("1000")
        (cgroup / "memory.max").write_text("3000")
        assert machine.available_memory() == 2000
        (cgroup / "memory.max").write_text("900")
        assert machine.available_memory() == 0
        (cgroup / "memory.max").write_text("max")
        assert machine.available_memory() > 2000
