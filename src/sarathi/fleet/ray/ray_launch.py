"""The entry point of `--ray`: from its options to a spawner of engines on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sarathi.engine.config import EngineConfig
from sarathi.fleet.ray.cluster import connected, place_replicas
from sarathi.fleet.ray.ray_options import RayOptions
from sarathi.fleet.ray.spawners import EngineSpawner
from sarathi.system.processes import Spawner

_RESERVE_TIMEOUT = 30.0  # seconds that an engine waits for resources: machines may be joining


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

    Args:
        replicas: engines to begin with.
        hub_id: of the model, if it has one.
        on_progress: called with a line about each step.
        timeout: seconds that an engine may wait for its resources.

    Yields:
        The spawner of engines, and the configuration with which it has to start them.

    Raises:
        ConfigError: Ray is not installed, or the cluster does not exist or lacks the resources.
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
