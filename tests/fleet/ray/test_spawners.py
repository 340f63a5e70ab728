"""Processes that are actors: how they start and end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from sarathi.backends.parallel.rank_layout import ParallelLayout
from sarathi.errors import ConfigError
from sarathi.fleet.ray.cluster import Cluster, Placement
from sarathi.fleet.ray.spawners import EngineSpawner
from sarathi.system.processes import Process

PROGRAM = "tests.fleet.ray.actor_programs"
T = TypeVar("T")


def until(found: Callable[[], T | None], seconds: float = 30.0) -> T:
    deadline = time.monotonic() + seconds
    while (result := found()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result


def end_of(process: Process) -> str:
    return until(process.ended)


def has_ended(pid: int) -> bool | None:
    return None if psutil.pid_exists(pid) else True


def all_free(cluster: Cluster) -> bool | None:
    return True if cluster.free()[0] == cluster.nodes[0].cpus else None


def spawner(cluster: Cluster, stages: int = 1, cpus: int = 1, **kwargs: float) -> EngineSpawner:
    placement = Placement(ParallelLayout(pp=stages), cpus=cpus, gpus=0)
    return EngineSpawner(cluster, placement, None, **{"timeout": 30.0, **kwargs})


@pytest.fixture(autouse=True)
def nothing_left(ray_cluster: Cluster) -> Iterator[None]:
    """Assert that no placement group outlives its engine."""
    yield
    until(lambda: all_free(ray_cluster), 10)


def test_an_exit_status_is_returned(ray_cluster: Cluster) -> None:
    process = spawner(ray_cluster).spawn(PROGRAM, ["return", "3"])
    assert end_of(process) == "exit status 3"
    process.kill()
    assert process.ended() == "exit status 3"


def test_an_uncaught_exception_is_returned(ray_cluster: Cluster) -> None:
    process = spawner(ray_cluster).spawn(PROGRAM, ["raise", "no such thing"])
    assert end_of(process) == "ValueError: no such thing"


def test_a_cluster_started_here_uses_loopback(ray_cluster: Cluster, tmp_path: Path) -> None:
    engines = spawner(ray_cluster)
    assert end_of(engines.spawn(PROGRAM, ["host", str(tmp_path / "host")])) == "exit status 0"
    assert (tmp_path / "host").read_text() == engines.host == "127.0.0.1"


@pytest.fixture
def engine(ray_cluster: Cluster, tmp_path: Path) -> Iterator[tuple[Process, int, int]]:
    """An engine of two stages, and the process ids of both."""
    files = [tmp_path / "engine", tmp_path / "worker"]
    process = spawner(ray_cluster, stages=2).spawn(PROGRAM, ["engine", *map(str, files)])
    until(lambda: all(map(Path.exists, files)) or None)
    pids = [int(file.read_text()) for file in files]
    assert process.ended() is None
    yield process, pids[0], pids[1]
    process.kill()


def test_a_worker_ends_when_its_engine_is_killed(engine: tuple[Process, int, int]) -> None:
    process, engine_pid, worker_pid = engine
    os.kill(engine_pid, signal.SIGKILL)
    assert "unexpectedly exits" in end_of(process)
    until(lambda: has_ended(worker_pid))


def test_killing_an_engine_ends_both_even_in_a_call_that_never_returns(
    engine: tuple[Process, int, int],
) -> None:
    process, engine_pid, worker_pid = engine
    process.kill()
    assert process.ended() == "killed"
    until(lambda: has_ended(engine_pid))
    until(lambda: has_ended(worker_pid))


def test_replicas_that_do_not_fit_are_refused(ray_cluster: Cluster) -> None:
    with pytest.raises(ConfigError) as error:
        spawner(ray_cluster, stages=2, cpus=2, timeout=0.3).reserve(2)
    total = f"{ray_cluster.nodes[0].cpus:g} CPUs"
    assert "has found no room for replica 2 of 2 within 0.3 s" in str(error.value)
    assert "it needs 2 times 2 CPUs, each on one machine" in str(error.value)
    assert f"The cluster is one machine ({total}), and free are " in str(error.value)


def test_a_stage_that_fits_on_no_machine_is_refused(ray_cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match="no room for replica 1 of 1"):
        spawner(ray_cluster, cpus=1000, timeout=0.3).reserve(1)


def test_an_engine_that_gets_no_resources_later_ends_in_time(ray_cluster: Cluster) -> None:
    process = spawner(ray_cluster, cpus=1000, timeout=0.3).spawn(PROGRAM, ["return", "0"])
    assert process.ended() is None
    assert "no room for a replica within 0.3 s" in end_of(process)


def test_what_was_reserved_and_not_used_is_released(ray_cluster: Cluster) -> None:
    engines = spawner(ray_cluster)
    engines.reserve(2)
    assert end_of(engines.spawn(PROGRAM, ["return", "0"])) == "exit status 0"
    engines.release()
