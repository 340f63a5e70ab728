"""Processes of engines as Ray actors: an engine in a placement group, its workers beside it."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sarathi.errors import ConfigError, ModelError
from sarathi.fleet.ray.cluster import Cluster, Placement, describe_resources
from sarathi.models.locate import locate

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

    from sarathi.system.processes import Process, Spawner

_POLL_SECONDS = 0.1  # between checks that a placement group is ready


class ActorRunner:
    """The actor. Its own process computes, so that it ends with the process that started it."""

    def run(
        self,
        module: str,
        arguments: Sequence[str],
        hub_id: str | None,
        workers: Callable[[], Spawner] | None,
    ) -> int:
        """Run `main` of a module, which returns an exit status.

        Args:
            hub_id: of the model, which is downloaded to this machine, too; None: it has none.
            workers: for an engine: returns the spawner of its other processes.
        """
        main = import_module(module).main
        if hub_id is not None:
            # If that fails, the model may be in the cache, or `main` will report that it is not.
            with contextlib.suppress(ModelError):
                locate(hub_id)
        return int(main(arguments) if workers is None else main(arguments, workers()))


class ActorProcess:
    """A `Process` that is an actor: a worker, or an engine, which then has a reservation."""

    def __init__(
        self,
        name: str,
        group: PlacementGroup,
        stage: int,
        placement: Placement,
        module: str,
        arguments: Sequence[str],
        hub_id: str | None,
        workers: Callable[[], Spawner] | None = None,
        reservation: Reservation | None = None,
    ) -> None:
        """Start the actor once its resources are reserved; the call returns at once.

        It ends when the calling process does.

        Args:
            name: of the process in the system's list of processes, after "ray::".
            stage: whose bundle of the placement group it uses.
            workers: see `ActorRunner.run`.
            reservation: is released when the actor has ended.
        """
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        actor_class: Any = ray.remote(ActorRunner)
        # After the loss of a process the whole engine has to restart: Ray must not restart parts.
        self._actor = actor_class.options(
            num_cpus=placement.cpus,
            num_gpus=placement.gpus,
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, stage),
        ).remote()
        self._call = self._actor.run.options(name=name).remote(
            module, list(arguments), hub_id, workers
        )
        self._reservation = reservation
        self._end: str | None = None

    def ended(self) -> str | None:
        if self._end is None:
            end = self._result()
            reservation = self._reservation
            if end is None and reservation is not None and reservation.failed():
                end = reservation.explain("a replica")
            if end is not None:
                self._finish(end)
        return self._end

    def kill(self) -> None:
        if self._end is None:
            self._finish("killed")

    def _result(self) -> str | None:
        import ray
        from ray.exceptions import RayError

        if not ray.wait([self._call], timeout=0)[0]:
            return None
        try:
            return f"exit status {ray.get(self._call)}"
        except RayError as error:
            return death_cause(str(error))

    def _finish(self, end: str) -> None:
        import ray

        self._end = end
        ray.kill(self._actor)
        if self._reservation is not None:
            self._reservation.release()


def death_cause(message: str) -> str:
    """Return the part of Ray's message that gives the reason for an actor's death."""
    lines = [line.strip() for line in message.strip().splitlines()]
    last = lines[-1] if lines else ""
    detail = re.search(r"Worker exit detail: (.*?)(?: Some common causes.*)?$", last)
    reason = (detail[1] if detail else last).rstrip(".")
    return re.sub(r"\bactor [0-9a-f]{32}\b", "actor", reason) or "its actor has died"


class WorkerSpawner:
    """Starts the workers of one engine in its placement group; created in the engine's actor.

    The workers belong to that actor: when it dies, Ray ends them.
    """

    def __init__(
        self, group: PlacementGroup, placement: Placement, hub_id: str | None, host: str | None
    ) -> None:
        """Prepare to start workers, which reach the engine at `host`; None: its own address."""
        import ray

        self.host: str | None = host or ray.util.get_node_ip_address()
        self._group = group
        self._placement = placement
        self._hub_id = hub_id
        self._count = 0  # an engine starts them in the order of `ParallelLayout.worker_ranks`

    def spawn(self, module: str, arguments: Sequence[str]) -> Process:
        placement = self._placement
        rank_id = placement.layout.worker_ranks[self._count]
        self._count += 1
        name = f"sarathi-stage-{rank_id.stage}-rank-{rank_id.rank}"
        return ActorProcess(
            name, self._group, rank_id.stage, placement, module, arguments, self._hub_id
        )


class EngineSpawner:
    """Starts engines, each in a new placement group, which leaves out machines that have died."""

    def __init__(
        self, cluster: Cluster, placement: Placement, hub_id: str | None, *, timeout: float
    ) -> None:
        """Prepare to start engines, which may each wait `timeout` seconds for their resources."""
        self.host: str | None = cluster.host
        self._cluster = cluster
        self._placement = placement
        self._hub_id = hub_id
        self._timeout = timeout
        self._reserved: list[Reservation] = []

    def reserve(self, replicas: int) -> None:
        """Reserve resources for the first engines; `ConfigError` if there are none in time."""
        self._reserved = [self._reservation() for _ in range(replicas)]
        for index, reservation in enumerate(self._reserved):
            while not reservation.ready():
                if reservation.failed():
                    message = reservation.explain(f"replica {index + 1} of {replicas}")
                    self.release()
                    raise ConfigError(message)
                time.sleep(_POLL_SECONDS)

    def release(self) -> None:
        """Release what has been reserved and not used."""
        for reservation in self._reserved:
            reservation.release()
        self._reserved = []

    def spawn(self, module: str, arguments: Sequence[str]) -> Process:
        reservation = self._reserved.pop() if self._reserved else self._reservation()
        group, placement, hub_id = reservation.group, self._placement, self._hub_id
        worker_host = self.host if self._cluster.own else None
        return ActorProcess(
            "sarathi-engine",
            group,
            placement.layout.engine_rank.stage,
            placement,
            module,
            arguments,
            hub_id,
            partial(WorkerSpawner, group, placement, hub_id, worker_host),
            reservation,
        )

    def _reservation(self) -> Reservation:
        return Reservation(self._cluster, self._placement, self._timeout)


class Reservation:
    """A placement group for one replica, which the cluster creates once it has the resources."""

    def __init__(self, cluster: Cluster, placement: Placement, timeout: float) -> None:
        """Ask the cluster for the resources; returns at once, but counts the seconds to wait."""
        from ray.util.placement_group import placement_group

        self.placement = placement
        self.group = placement_group(placement.bundles, strategy="PACK")
        self._cluster = cluster
        self._timeout = timeout
        self._began = time.monotonic()
        self._ready = False

    def ready(self) -> bool:
        """Return whether it has been created; never blocks."""
        from ray.util.placement_group import placement_group_table

        if not self._ready:
            self._ready = placement_group_table(self.group).get("state") == "CREATED"
        return self._ready

    def failed(self) -> bool:
        """Return whether it has not been created in time; never blocks."""
        return not self.ready() and time.monotonic() > self._began + self._timeout

    def explain(self, replica: str) -> str:
        """Return an error message: what `replica` needs and what the cluster has."""
        nodes = self._cluster.nodes
        has = "; ".join(describe_resources(node.cpus, node.gpus) for node in nodes)
        machines = f"{len(nodes)} machines" if len(nodes) > 1 else "one machine"
        spread = "" if self.placement.layout.pp == 1 else ", each on one machine"
        return (
            f"the Ray cluster has found no room for {replica} within {self._timeout:g} s: it needs "
            f"{self.placement}{spread}. The cluster is {machines} ({has}), and free are "
            f"{describe_resources(*self._cluster.free())}: lower --replicas, --pp, --tp or "
            "--ray-cpus-per-rank, or add machines"
        )

    def release(self) -> None:
        """Remove the placement group and end what still runs in it. May be called twice."""
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(self.group)
