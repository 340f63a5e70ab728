"""The replicas of a fleet: what is known of each, and when a dead engine is restarted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from sarathi.fleet.engine_client import EngineClient

ReplicaState = Literal["ready", "starting", "draining", "failed"]
REPLICA_STATES: tuple[ReplicaState, ...] = ("ready", "starting", "draining", "failed")


class ReplicaStatus(msgspec.Struct, frozen=True):
    """The state of one replica."""

    number: int
    state: ReplicaState
    requests: int  # that have not ended
    restarts: int
    reason: str | None = None  # why it failed, or was restarted the last time


def by_state(replicas: Sequence[ReplicaStatus]) -> dict[ReplicaState, int]:
    """Return the number of replicas in each state, 0 included."""
    counts = dict.fromkeys(REPLICA_STATES, 0)
    for replica in replicas:
        counts[replica.state] += 1
    return counts


@dataclass(frozen=True)
class RestartPolicy:
    """When an engine that has died is restarted, and when it is given up."""

    max_failed_starts: int = 5  # in a row
    initial_delay: float = 0.5  # seconds before a start that follows a failure; doubles each time
    max_delay: float = 30.0
    stable_after: float = 60.0  # seconds; an engine that lived longer starts a new row of failures

    def delay(self, failures: int) -> float:
        """Return the seconds before the next start, after so many early deaths in a row."""
        if failures < 1:
            return 0.0
        doublings = min(failures - 1, 30)
        return min(self.max_delay, self.initial_delay * 2.0**doublings)


@dataclass(eq=False)
class Replica:
    """One engine after the other: `Fleet` starts the next when one dies."""

    number: int
    state: ReplicaState = "starting"
    engine: EngineClient | None = None  # the present or the latest one
    failures: int = 0  # failed starts in a row
    was_ready: bool = False  # once at least
    restarts: int = 0
    reason: str | None = None  # of the latest death
    running: asyncio.Task[None] | None = None  # starts engines
    draining: asyncio.Task[None] | None = None  # ends the engine when its requests have ended
    ending: bool = False  # and it is too late to resume

    @property
    def is_alive(self) -> bool:
        """Whether its engine has not died; it may not be ready yet."""
        return self.engine is not None and self.engine.error is None

    @property
    def status(self) -> ReplicaStatus:
        """What operators see of the replica."""
        num_open = 0 if self.engine is None else self.engine.num_open
        return ReplicaStatus(self.number, self.state, num_open, self.restarts, self.reason)
