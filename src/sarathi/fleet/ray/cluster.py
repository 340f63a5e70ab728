"""A Ray cluster: one that runs already, or one on this machine for as long as this process."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sarathi.errors import ConfigError
from sarathi.fleet.ray.placement import Node
from sarathi.system.machine import usable_cores

_INSTALL = "--ray needs Ray: pip install 'sarathi-serve[ray]'"
_KNOCK = 5.0  # seconds for a port to answer
_HEALTH = 20.0  # seconds for a cluster to say that it is well; it takes one
_OBJECT_STORE = 80 * 2**20  # bytes, nearly the least that Ray takes; nothing of ours is kept there
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Cluster:
    """The one that this process is connected to."""

    host: str  # where the others reach this process
    own: bool  # it is this machine alone, and ends with this process

    @property
    def nodes(self) -> list[Node]:
        import ray

        return [
            Node(
                node["NodeManagerAddress"],
                node["Resources"].get("CPU", 0.0),
                node["Resources"].get("GPU", 0.0),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]

    def free(self) -> tuple[float, float]:
        """CPUs and GPUs that no placement group has, over all machines."""
        import ray

        resources = ray.available_resources()
        return resources.get("CPU", 0.0), resources.get("GPU", 0.0)


@contextmanager
def connected(address: str | None, cpus: int, report: Callable[[str], None]) -> Iterator[Cluster]:
    """Connect to the cluster at `address`, or named by RAY_ADDRESS, or begun on this machine with
    `ray start`; where there is none, start one here.

    Args:
        address: host:port, as `ray start --head` prints it.
        cpus: that a cluster started here must count, even if the machine has fewer.
        report: called with a line about which cluster it is.

    Raises:
        ConfigError: there is no Ray, or no cluster at the address.
    """
    if find_spec("ray") is None:
        raise ConfigError(_INSTALL)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported
    if named := address or os.environ.get("RAY_ADDRESS"):
        _check(named)
        cluster = _join(named, named, report)
    elif begun := _begun_here():
        # Ray takes its token for an address that it has found by itself, not for one it is told.
        cluster = _join("auto", begun, report)
    else:
        cluster = _start(cpus, report)
    import ray

    try:
        yield cluster
    finally:
        ray.shutdown()


def _begun_here() -> str | None:
    """Where `ray start` says that its cluster is; None where none is, or it has gone."""
    linux = sys.platform.startswith("linux")
    folder = os.environ.get("RAY_TMPDIR") or (linux and os.environ.get("TMPDIR")) or "/tmp"
    try:
        address = Path(folder, "ray", "ray_current_cluster").read_text().strip()
    except OSError:
        return None
    return address if _answers(address) else None


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _check(address: str) -> None:
    """Ray itself would wait for minutes.

    Raises:
        ConfigError: there is no cluster.
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise ConfigError(
            f"the Ray address is {address!r}, expected host:port as `ray start --head` prints it, "
            "on a machine that has joined the cluster"
        )
    if not _answers(address):
        raise ConfigError(f"nothing answers at the Ray address {address}")
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_HEALTH)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"no Ray cluster answers at {address} within {_HEALTH:g} s") from None
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        reason = lines[-1] if lines else f"exit status {done.returncode}"
        raise ConfigError(f"the Ray cluster at {address} is not well: {reason}")


def _join(how: str, address: str, report: Callable[[str], None]) -> Cluster:
    """
    Args:
        how: what Ray takes for `address`.
    """
    import ray

    try:
        ray.init(address=how, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # of many kinds: ConnectionError, RuntimeError, ValueError, ...
        raise ConfigError(f"cannot join the Ray cluster at {address}: {error}") from error
    report(f"joined the Ray cluster at {address}")
    return Cluster(ray.util.get_node_ip_address(), own=False)


def _start(cpus: int, report: Callable[[str], None]) -> Cluster:
    # Ray's ports listen on all interfaces, and whoever may talk to them may run code here. It reads
    # this once, when it is imported.
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # By default anything else on the machine would go before its actors.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    cores = usable_cores()
    try:
        ray.init(
            address="local",
            num_cpus=max(cpus, cores),
            object_store_memory=_OBJECT_STORE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:
        raise ConfigError(f"cannot start Ray on this machine: {error}") from error
    report("started Ray on this machine")
    if cpus > cores:
        report(f"warning: {cpus} threads are to compute on the {cores} cores of this machine")
    return Cluster(_LOOPBACK, own=True)
