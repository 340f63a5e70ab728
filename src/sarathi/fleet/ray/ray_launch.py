"""The entry point of `--ray`: its options, and the spawner of engines on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from sarathi.engine.config import EngineConfig
from sarathi.fleet.ray.cluster import connected, place_replicas
from sarathi.fleet.ray.spawners import EngineSpawner
from sarathi.options import Count, CountOrZero, Option
from sarathi.system.processes import Spawner

_RESERVE_TIMEOUT = 30.0  # seconds that an engine waits for resources: machines may be joining


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Whether and how engines run on a Ray cluster."""

    enabled: Annotated[
        bool,
        Option(
            "run replicas, stages and ranks on the machines of a Ray cluster: one that this "
            "machine has joined, or else one of this machine alone",
            group="many machines",
            name="ray",
        ),
    ] = False
    address: Annotated[
        str | None,
        Option(
            "address of the cluster",
            default="RAY_ADDRESS, or the one that `ray start` has joined",
            name="ray-address",
            metavar="HOST:PORT",
        ),
    ] = None
    cpus_per_rank: Annotated[
        Count | None,
        Option(
            "free CPUs that a rank needs on its machine",
            default="--threads, or else all CPUs of the cluster between them; 1 where a GPU "
            "computes",
            name="ray-cpus-per-rank",
        ),
    ] = None
    gpus_per_rank: Annotated[
        CountOrZero | None,
        Option(
            "free GPUs that a rank needs on its machine",
            default="1 with --executor torch where the cluster has GPUs",
            name="ray-gpus-per-rank",
        ),
    ] = None


@contextmanager
def on_ray(
    options: RayOptions,
    config: EngineConfig,
    replicas: int,
    hub_id: str | None,
    on_progress: Callable[[str], None],
    *,
    timeout: float = _RESERVE_TIMEOUT,
) -> Iterator[tuple[Spawner, EngineConfig]]:
    """Connect to a cluster and reserve the resources of the first engines.

    Yields the spawner of engines, and the configuration with which it has to start them.
    `ConfigError` if Ray is not installed, or the cluster does not exist or lacks the resources.

    Args:
        hub_id: of the model, if it has one.
        timeout: seconds that an engine may wait for its resources.
    """
    ranks = replicas * config.pp * config.tp
    cpus = ranks * (options.cpus_per_rank or config.threads or 1)
    with connected(options.address, cpus, on_progress) as cluster:
        placement, config = place_replicas(
            config,
            replicas,
            cluster.nodes,
            cpus_per_rank=options.cpus_per_rank,
            gpus_per_rank=options.gpus_per_rank,
        )
        spawner = EngineSpawner(cluster, placement, hub_id, timeout=timeout)
        try:
            spawner.reserve(replicas)
            on_progress(f"each replica has {placement}")
            yield spawner, config
        finally:
            spawner.release()
