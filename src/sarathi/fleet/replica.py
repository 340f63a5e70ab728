"""A replica: keeps one engine running, and restarts it when it dies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from sarathi.fleet.engine_client import EngineClient, EngineError

_DRAIN_POLL = 0.05  # seconds

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


class ReplicaCallbacks(Protocol):
    """Receives the changes of a replica, and gives it requests; see `Fleet`."""

    def on_ready(self, replica: Replica) -> None: ...

    def on_engine_died(self, replica: Replica) -> None:
        """Take the requests of the dead engine, which the replica still has."""

    def gives_up(self, replica: Replica) -> bool:
        """Return whether the replica is given up after its latest failure to start."""

    def on_failed(self, replica: Replica) -> None:
        """Handle a replica that was given up."""

    def on_drained(self, replica: Replica) -> None:
        """Take the requests that are left; the engine is about to end."""

    def on_ended(self, replica: Replica) -> None:
        """Forget a replica whose engine has ended on request."""


class Replica:
    """Keeps one engine running."""

    def __init__(
        self,
        number: int,
        launch: Callable[[Replica], EngineClient],
        callbacks: ReplicaCallbacks,
        policy: RestartPolicy,
    ) -> None:
        """Prepare a replica; `start` launches its engine.

        Args:
            launch: returns a new engine that is not started yet.
        """
        self.number = number
        self.state: ReplicaState = "starting"
        self.failures = 0  # failed starts in a row
        self.was_ready = False  # once at least
        self.restarts = 0
        self.reason: str | None = None  # of the latest death
        self.engine: EngineClient | None = None
        self._launch = launch
        self._callbacks = callbacks
        self._policy = policy
        self._task: asyncio.Task[None] | None = None
        self._drain: asyncio.Task[None] | None = None
        self._ending = False

    @property
    def takes_requests(self) -> bool:
        """Whether its engine is ready."""
        return self.state == "ready" and self.engine is not None and self.engine.error is None

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return 0 if self.engine is None else self.engine.num_open

    @property
    def status(self) -> ReplicaStatus:
        """What operators see of the replica."""
        return ReplicaStatus(self.number, self.state, self.num_open, self.restarts, self.reason)

    def start(self) -> None:
        """Launch the engine and keep it running, in a task."""
        self._task = asyncio.create_task(self._keep_running())

    def drain(self, seconds: float | None) -> None:
        """Wait for the open requests, then end the engine.

        Args:
            seconds: after which the rest continues in other engines; None: wait for all.
        """
        seconds = seconds if self.takes_requests else 0.0
        self.state = "draining"
        self._drain = asyncio.create_task(self._end(seconds))

    def resume(self) -> bool:
        """Take requests again after `drain`; return False if it is too late."""
        alive = self.engine is not None and self.engine.error is None and self.was_ready
        if self._drain is None or self._ending or not alive:
            return False
        self._drain.cancel()
        self._drain = None
        self.state = "ready"
        return True

    async def stop(self) -> None:
        """End the engine at once. Its requests stay with it."""
        tasks = [task for task in (self._drain, self._task) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.engine is not None:
            await self.engine.stop()

    async def _keep_running(self) -> None:
        early = 0  # deaths in a row of engines that had not lived for long
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            engine = self.engine = self._launch(self)
            engine.start()
            try:
                await engine.loaded()
            except EngineError as error:
                self.reason = str(error)
                self.failures += 1
                loaded = False
            else:
                if self.state == "draining":
                    return  # `_end` does the rest
                self.failures = 0
                self.state = "ready"
                self.was_ready = loaded = True
                self._callbacks.on_ready(self)
                self.reason = await engine.died()
            if self.state == "draining":
                return
            self.state = "starting"
            self._callbacks.on_engine_died(self)
            await engine.stop()
            if not loaded and self._callbacks.gives_up(self):
                self.state = "failed"
                self._callbacks.on_failed(self)
                return
            early = 0 if loaded and clock() - began >= self._policy.stable_after else early + 1
            # A first death may be an accident: there is no delay after it.
            await asyncio.sleep(self._policy.delay(early - loaded))
            self.restarts += 1

    async def _end(self, seconds: float | None) -> None:
        loop = asyncio.get_running_loop()
        deadline = None if seconds is None else loop.time() + seconds
        while self.engine is not None and self.engine.error is None and self.engine.num_open:
            if deadline is not None and loop.time() >= deadline:
                break
            await asyncio.sleep(_DRAIN_POLL)
        self._ending = True
        self._callbacks.on_drained(self)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.engine is not None:
            await self.engine.stop()
        self._callbacks.on_ended(self)
