"""The connection to a Ray cluster, and what the processes of engines need of its machines."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import msgspec

from sarathi.backends.parallel.rank_layout import ParallelLayout
from sarathi.backends.registry import BACKENDS
from sarathi.engine.config import EngineConfig
from sarathi.errors import ConfigError
from sarathi.system.machine import usable_cores

_CONNECT_TIMEOUT = 5.0  # seconds for a port to answer
_HEALTH_TIMEOUT = 20.0  # seconds for a cluster to answer a health check, which takes one second
_OBJECT_STORE = 80 * 2**20  # bytes, nearly the minimum of Ray; we keep nothing there


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    address: str
    cpus: float  # that the cluster counts, used or not
    gpus: float


@dataclass(frozen=True)
class Placement:
    """One replica: a bundle for each stage, so that the ranks of a stage are on one machine.

    The ranks add up their results several times a layer, for which a network would be too slow;
    between stages only hidden states are sent.
    """

    layout: ParallelLayout
    cpus: int  # of each rank
    gpus: int  # of each rank

    @property
    def bundles(self) -> list[dict[str, float]]:
        """The resources of each stage, which have to be on one machine."""
        ranks = self.layout.tp
        bundle = {"CPU": float(self.cpus * ranks), "GPU": float(self.gpus * ranks)}
        return [{name: amount for name, amount in bundle.items() if amount}] * self.layout.pp

    def __str__(self) -> str:
        ranks, stages = self.layout.tp, self.layout.pp
        each = describe_resources(self.cpus * ranks, self.gpus * ranks)
        return each if stages == 1 else f"{stages} times {each}"


def describe_resources(cpus: float, gpus: float) -> str:
    """Return numbers of CPUs and GPUs as text; a zero is left out, unless both are zero."""
    named = [(cpus, "CPU"), (gpus, "GPU")]
    parts = [f"{count:g} {name}{'' if count == 1 else 's'}" for count, name in named if count]
    return " and ".join(parts) or "no CPU"


def place_replicas(
    config: EngineConfig,
    replicas: int,
    nodes: Sequence[Node],
    *,
    cpus_per_rank: int | None = None,
    gpus_per_rank: int | None = None,
) -> tuple[Placement, EngineConfig]:
    """Return the resources of each rank, and the configuration that makes use of them.

    Without `cpus_per_rank` a rank gets `config.threads` CPUs, or else an equal share of all CPUs of
    the cluster; 1 if GPUs compute. `ConfigError` if the options do not go together, or the cluster
    has no GPU.
    """
    layout = ParallelLayout(config.pp, config.tp)
    gpus = _gpus(config, nodes, gpus_per_rank)
    cpus = cpus_per_rank or config.threads
    if cpus is None:
        bundles = replicas * layout.pp
        cpus = 1 if gpus else equal_share([node.cpus for node in nodes], bundles, layout.tp)
    # Ray does not keep a process from using more CPUs than it has reserved: the executor must.
    device, threads = config.device, config.threads
    if BACKENDS[config.executor].has_devices:
        device = "cuda" if gpus else "cpu"
    if not gpus and threads is None:
        threads = cpus
    # A GPU is used by one rank, but all engines on a machine share its memory.
    fitting = max((int(node.cpus) // (cpus * layout.tp) for node in nodes), default=0)
    engines_here = 1 if gpus else max(1, min(replicas, fitting))
    config = msgspec.structs.replace(
        config, device=device, threads=threads, engines_here=engines_here
    )
    return Placement(layout, cpus, gpus), config


def equal_share(cpus: Sequence[float], bundles: int, ranks: int) -> int:
    """Return the most CPUs that each of `ranks` in each of `bundles` can have, at least 1.

    A bundle has to fit on one of the machines, whose CPUs are given.
    """
    most = max((int(count) // ranks for count in cpus), default=0)
    for share in range(most, 1, -1):
        if sum(int(count) // (share * ranks) for count in cpus) >= bundles:
            return share
    return 1


def _gpus(config: EngineConfig, nodes: Sequence[Node], requested: int | None) -> int:
    if not BACKENDS[config.executor].has_devices:
        if requested:
            able = " or ".join(name for name, each in BACKENDS.items() if each.has_devices)
            raise ConfigError(f"--ray-gpus-per-rank needs --executor {able}")
        return 0
    if config.device == "cpu":
        if requested:
            raise ConfigError(f"--ray-gpus-per-rank {requested} has no use with --device cpu")
        return 0
    has_gpus = any(node.gpus for node in nodes)
    if requested == 0 and config.device == "cuda":
        raise ConfigError("--device cuda needs --ray-gpus-per-rank 1 or more")
    if not has_gpus and (requested or config.device == "cuda"):
        raise ConfigError(
            "no machine of the Ray cluster has a GPU: use --device cpu, or start one with one"
        )
    if requested is not None:
        return requested
    return 1 if has_gpus else 0


@dataclass(frozen=True)
class Cluster:
    """The cluster that this process is connected to."""

    host: str  # the address under which other machines reach this process
    own: bool  # it was started by this process, on this machine, and ends with it

    @property
    def nodes(self) -> list[Node]:
        """The machines that are alive."""
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
        """Return the CPUs and GPUs that no placement group has reserved, over all machines."""
        import ray

        resources = ray.available_resources()
        return resources.get("CPU", 0.0), resources.get("GPU", 0.0)


@contextmanager
def connected(
    address: str | None, cpus: int, on_progress: Callable[[str], None]
) -> Iterator[Cluster]:
    """Connect to a cluster, or start one on this machine.

    The cluster is the one at `address` (host:port, as `ray start --head` prints it), or at
    RAY_ADDRESS, or the one that this machine has joined with `ray start`. Without any of these, one
    is started here, which counts at least so many CPUs. `ConfigError` if Ray is not installed, or
    no cluster answers at the address.
    """
    if find_spec("ray") is None:
        raise ConfigError("--ray needs Ray: pip install 'sarathi-serve[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported
    if named := address or os.environ.get("RAY_ADDRESS"):
        _check(named)
        cluster = _join(named, named, on_progress)
    elif local := _local_address():
        # Ray uses its token for an address that it has found by itself, not for one it is given.
        cluster = _join("auto", local, on_progress)
    else:
        cluster = _start(cpus, on_progress)
    import ray

    try:
        yield cluster
    finally:
        ray.shutdown()


def _local_address() -> str | None:
    """Return the address of the cluster that `ray start` has joined; None if none answers."""
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
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _check(address: str) -> None:
    """Raise `ConfigError` if no cluster answers; Ray itself would wait for minutes."""
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
        completed = subprocess.run(command, capture_output=True, text=True, timeout=_HEALTH_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"no Ray cluster answers at {address} within {_HEALTH_TIMEOUT:g} s"
        ) from None
    if completed.returncode != 0:
        lines = (completed.stderr or completed.stdout).strip().splitlines()
        reason = lines[-1] if lines else f"exit status {completed.returncode}"
        raise ConfigError(f"the Ray cluster at {address} is not well: {reason}")


def _join(ray_address: str, address: str, on_progress: Callable[[str], None]) -> Cluster:
    """Join a cluster; `address` is for messages, the one for Ray may be "auto"."""
    import ray

    try:
        ray.init(address=ray_address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # of many kinds: ConnectionError, RuntimeError, ValueError, ...
        raise ConfigError(f"cannot join the Ray cluster at {address}: {error}") from error
    on_progress(f"joined the Ray cluster at {address}")
    return Cluster(ray.util.get_node_ip_address(), own=False)


def _start(cpus: int, on_progress: Callable[[str], None]) -> Cluster:
    # Ray's ports listen on all interfaces, and clients that may use them may run code here. It
    # reads these variables once, when it is imported.
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # By default all other processes on the machine would have priority over its actors.
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
    on_progress("started Ray on this machine")
    if cpus > cores:
        on_progress(f"warning: {cpus} threads are to compute on the {cores} cores of this machine")
    return Cluster("127.0.0.1", own=True)
