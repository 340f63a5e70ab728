"""Clusters that do not exist: rejected at once, or within a bound."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from sarathi.errors import ConfigError, ModelError
from sarathi.fleet.ray import cluster
from sarathi.fleet.ray.cluster import connected
from sarathi.fleet.ray.spawners import ActorRunner, death_cause
from tests.fleet.ray.test_spawners import PROGRAM

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray")


def refused(address: str | None) -> str:
    with pytest.raises(ConfigError) as error, connected(address, 1, print):
        pass
    return str(error.value)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as one:
        yield one


def test_ray_is_imported_only_when_it_is_used() -> None:
    look = "import sarathi.fleet.ray.ray_launch, sys; print('ray' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_without_ray_the_message_explains_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    assert refused(None) == "--ray needs Ray: pip install 'sarathi-serve[ray]'"


@needs_ray
@pytest.mark.parametrize("address", ["nonsense", "ray://10.0.0.1:10001", "10.0.0.1", ":6379"])
def test_an_invalid_address_of_a_cluster(address: str) -> None:
    assert f"the Ray address is {address!r}, expected host:port" in refused(address)


@needs_ray
def test_nothing_listens(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    assert refused(f"127.0.0.1:{port}") == f"nothing answers at the Ray address 127.0.0.1:{port}"


@needs_ray
def test_the_address_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere")
    assert "the Ray address is 'elsewhere'" in refused(None)


@needs_ray
def test_a_port_that_stays_silent(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_HEALTH_TIMEOUT", 0.5)
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    assert refused(address) == f"no Ray cluster answers at {address} within 0.5 s"


def test_a_cluster_that_has_crashed_is_not_joined(
    tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert cluster._local_address() is None
    (tmp_path / "ray").mkdir()
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"{address}\n")
    assert cluster._local_address() == address
    listener.close()
    assert cluster._local_address() is None


@pytest.mark.parametrize("error", [None, ModelError("no network")])
def test_a_hub_id_is_downloaded_where_the_actor_runs(
    error: ModelError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def locate(name: str) -> None:
        asked.append(name)
        if error is not None:
            raise error

    monkeypatch.setattr("sarathi.fleet.ray.spawners.locate", locate)
    assert ActorRunner().run(PROGRAM, ["return", "3"], "org/name", None) == 3
    assert asked == ["org/name"]
    assert ActorRunner().run(PROGRAM, ["return", "0"], None, None) == 0
    assert asked == ["org/name"]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "The actor died unexpectedly before finishing this task.\n\tpid: 1\nThe actor is dead "
            "because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit "
            "detail: Worker unexpectedly exits with a connection error code 2. End of file. Some "
            "common causes include: (1) the process was killed by the OOM killer",
            "Worker unexpectedly exits with a connection error code 2. End of file",
        ),
        ("ray::run()\n  File x\nValueError: no such file", "ValueError: no such file"),
        (
            "The actor is dead because its node has died.",
            "The actor is dead because its node has died",
        ),
        (f"The actor {'5f' * 16} is unavailable: no route", "The actor is unavailable: no route"),
        ("", "its actor has died"),
    ],
)
def test_why_an_actor_died(message: str, expected: str) -> None:
    assert death_cause(message) == expected
