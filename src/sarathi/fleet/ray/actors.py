"""An actor that runs one process of the project, and what its owner knows of it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sarathi.errors import ModelError
from sarathi.fleet.ray.placement import Placement
from sarathi.models.locate import locate

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

    from sarathi.system.processes import Spawner

_UNKNOWN = "its actor has died"


@dataclass(frozen=True)
class Bundle:
    """A part of a placement group: what one or several actors have of one machine."""

    group: PlacementGroup
    index: int


class ActorRunner:
    """The actor. Its process computes, so that Ray knows of it and it ends with its owner."""

    def run(
        self,
        module: str,
        arguments: Sequence[str],
        hub_id: str | None,
        workers: Callable[[], Spawner] | None,
    ) -> int:
        """Run `main` of a module, which returns an exit status.

        Args:
            hub_id: of the model, which is downloaded to this machine, too; None: it is no such.
            workers: for an engine: makes what starts its other processes.
        """
        main = import_module(module).main
        if hub_id is not None:
            # Where that fails, the model may be there all the same, or `main` says that it is not.
            with contextlib.suppress(ModelError):
                locate(hub_id)
        return int(main(arguments) if workers is None else main(arguments, workers()))


class ActorProcess:
    """A `Process` that is an actor."""

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        placement: Placement,
        module: str,
        arguments: Sequence[str],
        hub_id: str | None,
        workers: Callable[[], Spawner] | None = None,
    ) -> None:
        """Start it; the call returns at once. It ends when the process that calls this does.

        Args:
            name: what the system's list of processes calls it, after "ray::".
        """
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(bundle.group, bundle.index)
        actor_class: Any = ray.remote(ActorRunner)
        # Who has lost a process must start all of its engine anew: Ray must not do it by itself.
        self._actor = actor_class.options(
            num_cpus=placement.cpus,
            num_gpus=placement.gpus,
            max_restarts=0,
            scheduling_strategy=strategy,
        ).remote()
        self._call = self._actor.run.options(name=name).remote(
            module, list(arguments), hub_id, workers
        )
        self._end: str | None = None

    def ended(self) -> str | None:
        """None while it runs or waits for its machine, otherwise how it ended."""
        import ray
        from ray.exceptions import RayError

        if self._end is None and ray.wait([self._call], timeout=0)[0]:
            try:
                self._end = f"exit status {ray.get(self._call)}"
            except RayError as error:
                self._end = cause(str(error))
        return self._end

    def kill(self) -> None:
        import ray

        if self._end is None:
            self._end = "killed"
        ray.kill(self._actor)


def cause(message: str) -> str:
    """The part of Ray's message that says why an actor died."""
    lines = [line.strip() for line in message.strip().splitlines()]
    last = lines[-1] if lines else ""
    detail = re.search(r"Worker exit detail: (.*?)(?: Some common causes.*)?$", last)
    reason = (detail[1] if detail else last).rstrip(".")
    return re.sub(r"\bactor [0-9a-f]{32}\b", "actor", reason) or _UNKNOWN
