"""From the options of `--ray` to what starts engines on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sarathi.engine.config import EngineConfig
from sarathi.fleet.ray.cluster import connected
from sarathi.fleet.ray.placement import place
from sarathi.fleet.ray.ray_options import RayOptions
from sarathi.fleet.ray.spawners import EngineSpawner
from sarathi.system.processes import Spawner

_PATIENCE = 30.0  # seconds that an engine waits for room: machines may be joining


@contextmanager
def on_ray(
    options: RayOptions,
    config: EngineConfig,
    replicas: int,
    hub_id: str | None,
    report: Callable[[str], None],
    *,
    patience: float = _PATIENCE,
) -> Iterator[tuple[Spawner, EngineConfig]]:
    """Room for the first engines on a cluster, as long as the context lasts.

    Args:
        replicas: engines to begin with.
        hub_id: of the model, if it has one.
        report: called with a line about what happens.
        patience: seconds that an engine may wait for room.

    Returns:
        What starts engines, and the configuration that they have to be started with.

    Raises:
        ConfigError: there is no Ray, no cluster, or no room.
    """
    ranks = replicas * config.pp * config.tp
    cpus = ranks * (options.cpus_per_rank or config.threads or 1)
    with connected(options.address, cpus, report) as cluster:
        placement, config = place(
            config,
            replicas,
            cluster.nodes,
            cpus_per_rank=options.cpus_per_rank,
            gpus_per_rank=options.gpus_per_rank,
        )
        spawner = EngineSpawner(cluster, placement, hub_id, patience=patience)
        try:
            spawner.reserve(replicas)
            report(f"each replica has {placement}")
            yield spawner, config
        finally:
            spawner.release()
