"""Start engines in placement groups, and their other processes beside them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from sarathi.errors import ConfigError
from sarathi.fleet.ray.actors import ActorProcess, Bundle
from sarathi.fleet.ray.cluster import Cluster
from sarathi.fleet.ray.placement import Placement, amounts

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

    from sarathi.system.processes import Process

_LOOK = 0.1  # seconds between looks at whether there is room


class WorkerSpawner:
    """Starts the workers of one engine in its placement group; made in the engine's actor.

    The actors belong to that one: when it dies, Ray ends them.
    """

    def __init__(
        self, group: PlacementGroup, placement: Placement, hub_id: str | None, host: str | None
    ) -> None:
        """
        Args:
            hub_id: of the model, if it has one.
            host: the address under which others reach the engine; None: that of its machine.
        """
        import ray

        self.host: str | None = host or ray.util.get_node_ip_address()
        self._group = group
        self._placement = placement
        self._hub_id = hub_id
        self._count = 0  # an engine starts them in the order of `ParallelLayout.worker_ranks`

    def spawn(self, module: str, arguments: Sequence[str]) -> Process:
        placement = self._placement
        place = placement.layout.worker_ranks[self._count]
        self._count += 1
        name = f"sarathi-stage-{place.stage}-rank-{place.rank}"
        bundle = Bundle(self._group, place.stage)
        return ActorProcess(name, bundle, placement, module, arguments, self._hub_id)


class EngineSpawner:
    """Starts engines, each in a placement group of its own, made anew for every one: machines that
    have died since are then left out."""

    def __init__(
        self, cluster: Cluster, placement: Placement, hub_id: str | None, *, patience: float
    ) -> None:
        """
        Args:
            hub_id: of the model, if it has one.
            patience: seconds that an engine may wait for room.
        """
        self.host: str | None = cluster.host
        self._cluster = cluster
        self._placement = placement
        self._hub_id = hub_id
        self._patience = patience
        self._reserved: list[Room] = []

    def reserve(self, replicas: int) -> None:
        """Make sure that there is room for the first engines.

        Raises:
            ConfigError: there is not, or not in time.
        """
        self._reserved = [self._room() for _ in range(replicas)]
        for index, room in enumerate(self._reserved):
            while not room.ready():
                if room.late:
                    message = room.explain(f"replica {index + 1} of {replicas}")
                    self.release()
                    raise ConfigError(message)
                time.sleep(_LOOK)

    def release(self) -> None:
        """Give back what has been reserved and not used."""
        for room in self._reserved:
            room.leave()
        self._reserved = []

    def spawn(self, module: str, arguments: Sequence[str]) -> Process:
        room = self._reserved.pop() if self._reserved else self._room()
        return PlacedEngine(room, module, arguments, self._hub_id, self._worker_host)

    @property
    def _worker_host(self) -> str | None:
        return self.host if self._cluster.own else None

    def _room(self) -> Room:
        return Room(self._cluster, self._placement, self._patience)


class Room:
    """A placement group: room for one replica, once the cluster has found it."""

    def __init__(self, cluster: Cluster, placement: Placement, patience: float) -> None:
        """
        Args:
            patience: seconds until finding it is late.
        """
        from ray.util.placement_group import placement_group

        self.placement = placement
        self.group = placement_group(placement.bundles, strategy="PACK")
        self._cluster = cluster
        self._patience = patience
        self._began = time.monotonic()
        self._ready = False

    def ready(self) -> bool:
        """Whether it has been found; never waits."""
        from ray.util.placement_group import placement_group_table

        if not self._ready:
            self._ready = placement_group_table(self.group).get("state") == "CREATED"
        return self._ready

    @property
    def late(self) -> bool:
        return time.monotonic() > self._began + self._patience

    def explain(self, whose: str) -> str:
        """Why there is none."""
        nodes = self._cluster.nodes
        has = "; ".join(amounts(node.cpus, node.gpus) for node in nodes)
        machines = f"{len(nodes)} machines" if len(nodes) > 1 else "one machine"
        spread = "" if self.placement.layout.pp == 1 else ", each on one machine"
        return (
            f"the Ray cluster has found no room for {whose} within {self._patience:g} s: it needs "
            f"{self.placement}{spread}. The cluster is {machines} ({has}), and free are "
            f"{amounts(*self._cluster.free())}: lower --replicas, --pp, --tp or "
            "--ray-cpus-per-rank, or add machines"
        )

    def leave(self) -> None:
        """Ends what still runs there. Harmless twice."""
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(self.group)


class PlacedEngine:
    """A `Process` that is an engine's actor. Its room is given back when it has ended."""

    def __init__(
        self,
        room: Room,
        module: str,
        arguments: Sequence[str],
        hub_id: str | None,
        worker_host: str | None,
    ) -> None:
        placement = room.placement
        self._room = room
        self._actor = ActorProcess(
            "sarathi-engine",
            Bundle(room.group, placement.layout.engine_rank.stage),
            placement,
            module,
            arguments,
            hub_id,
            partial(WorkerSpawner, room.group, placement, hub_id, worker_host),
        )
        self._end: str | None = None

    def ended(self) -> str | None:
        if self._end is None:
            end = self._actor.ended()
            if end is None and not self._room.ready() and self._room.late:
                end = self._room.explain("a replica")
            if end is not None:
                self._finish(end)
        return self._end

    def kill(self) -> None:
        if self._end is None:
            self._finish("killed")

    def _finish(self, end: str) -> None:
        self._end = end
        self._actor.kill()
        self._room.leave()
