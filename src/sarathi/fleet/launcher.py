"""Engines for the replicas of a fleet: what each gets of the machine that they share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from sarathi.engine.config import EngineConfig, share_of_machine
from sarathi.fleet.engine_client import EngineCallbacks, EngineClient
from sarathi.fleet.fleet import LaunchSpec
from sarathi.system.processes import LOCAL, Spawner


class EngineLauncher:
    """Makes engines of one model; see `fleet.Launcher`."""

    def __init__(self, path: Path, config: EngineConfig, spawner: Spawner = LOCAL) -> None:
        """
        Args:
            path: the model, as `open_model` takes it.
            spawner: starts the processes.
        """
        self._path = path
        self._config = config
        self._spawner = spawner

    def __call__(
        self, order: LaunchSpec, watcher: EngineCallbacks, report: Callable[[str], None]
    ) -> EngineClient:
        config = _with_own_files(self._config, order.count)
        if order.max_model_len is not None:
            config = msgspec.structs.replace(config, max_model_len=order.max_model_len)
        if order.tbt_target is not None and config.latency_budget:
            config = msgspec.structs.replace(config, tbt_target=order.tbt_target)
        if self._spawner.host is None and order.replicas > 1:
            config = share_of_machine(config, order.replicas, order.number)
        return EngineClient(self._path, config, watcher, spawner=self._spawner, report=report)


def _with_own_files(config: EngineConfig, count: int) -> EngineConfig:
    """Files of its own for every engine but the first: `log.jsonl`, `log.1.jsonl` and so on.

    An engine empties its files when it starts.
    """
    return msgspec.structs.replace(
        config,
        iteration_log=_numbered(config.iteration_log, count),
        trace=_numbered(config.trace, count),
    )


def _numbered(name: str | None, count: int) -> str | None:
    if name is None or not count:
        return name
    path = Path(name)
    return str(path.with_name(f"{path.stem}.{count}{path.suffix}"))
