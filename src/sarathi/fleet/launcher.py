"""Launching engines for the replicas of a fleet, each with its share of the machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from sarathi.engine.config import EngineConfig, share_of_machine
from sarathi.fleet.engine_client import EngineCallbacks, EngineClient
from sarathi.fleet.replica import EngineHandle
from sarathi.system.processes import LOCAL, Spawner


@dataclass(frozen=True)
class LaunchSpec:
    """What an engine is launched for."""

    number: int  # of its replica
    count: int  # engines launched before, by any replica
    replicas: int  # in the fleet
    # Limits that requests rely on; None before the first engine is ready.
    max_model_len: int | None
    tbt_target: float | None  # seconds; None also if there is no target


class Launcher(Protocol):
    """Creates engines; see `EngineLauncher`."""

    def __call__(
        self, spec: LaunchSpec, callbacks: EngineCallbacks, log: Callable[[str], None]
    ) -> EngineHandle:
        """Return an engine that is not started yet."""


class EngineLauncher:
    """Creates engines of one model, each in a process."""

    def __init__(self, path: Path, config: EngineConfig, spawner: Spawner = LOCAL) -> None:
        """Prepare to launch engines.

        Args:
            path: the model, as `open_model` takes it.
            spawner: starts the processes.
        """
        self._path = path
        self._config = config
        self._spawner = spawner

    def __call__(
        self, spec: LaunchSpec, callbacks: EngineCallbacks, log: Callable[[str], None]
    ) -> EngineClient:
        config = _with_separate_files(self._config, spec.count)
        if spec.max_model_len is not None:
            config = msgspec.structs.replace(config, max_model_len=spec.max_model_len)
        if spec.tbt_target is not None and config.latency_budget:
            config = msgspec.structs.replace(config, tbt_target=spec.tbt_target)
        if self._spawner.host is None and spec.replicas > 1:
            config = share_of_machine(config, spec.replicas, spec.number)
        return EngineClient(self._path, config, callbacks, spawner=self._spawner, log=log)


def _with_separate_files(config: EngineConfig, count: int) -> EngineConfig:
    """Return `config` with numbered files for every engine but the first, such as `log.1.jsonl`.

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
