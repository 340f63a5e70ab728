"""One place among several for an engine, which is started again there when it dies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sarathi.engine.messages import ModelInfo
from sarathi.fleet.engine_api import ReplicaState, ReplicaStatus
from sarathi.fleet.generation import EngineError, Generation
from sarathi.telemetry.stats import Stats

_DRAIN_LOOK = 0.05  # seconds


@dataclass(frozen=True)
class RestartPolicy:
    """With engines that die."""

    starts: int = 5  # that fail in a row, until there is no hope
    first_wait: float = 0.5  # seconds before a start that follows a failure; doubles each time
    longest_wait: float = 30.0
    stable: float = 60.0  # seconds that an engine must have lived for its death to be the first

    def wait(self, failures: int) -> float:
        """Seconds before the next start, after so many early deaths in a row."""
        if failures < 1:
            return 0.0
        doublings = min(failures - 1, 30)
        return min(self.longest_wait, self.first_wait * 2.0**doublings)


class EngineHandle(Protocol):
    """An engine from its start to its death; see `EngineClient`."""

    info: ModelInfo | None
    latency: tuple[float, ...]
    error: str | None
    stats: Stats | None
    bad_input: bool

    @property
    def num_open(self) -> int: ...

    def start(self) -> None: ...

    async def loaded(self) -> ModelInfo: ...

    async def died(self) -> str: ...

    def submit(self, generation: Generation) -> None: ...

    def cancel(self, generation: Generation) -> None: ...

    def take_open(self) -> list[Generation]: ...

    async def stop(self) -> None: ...


class ReplicaCallbacks(Protocol):
    """Whoever gives requests to a replica."""

    def became_ready(self, replica: Replica) -> None: ...

    def lost_engine(self, replica: Replica) -> None:
        """The engine has died; the replica still has it, to take the requests from."""

    def is_hopeless(self, replica: Replica) -> bool:
        """Whether the latest failure to start is reason enough to give the replica up."""

    def gave_up(self, replica: Replica) -> None: ...

    def drained(self, replica: Replica) -> None:
        """It is about to end; requests that it still has are to be taken from it."""

    def ended(self, replica: Replica) -> None:
        """Its engine has ended, and there will be no other."""


class Replica:
    """Keeps an engine running."""

    def __init__(
        self,
        number: int,
        launch: Callable[[Replica], EngineHandle],
        owner: ReplicaCallbacks,
        patience: RestartPolicy,
    ) -> None:
        self.number = number
        self.state: ReplicaState = "starting"
        self.failures = 0  # starts in a row that got nowhere
        self.was_ready = False  # once at least
        self.restarts = 0
        self.reason: str | None = None  # of the latest death
        self.engine: EngineHandle | None = None
        self._launch = launch
        self._owner = owner
        self._patience = patience
        self._task: asyncio.Task[None] | None = None
        self._drain: asyncio.Task[None] | None = None
        self._ending = False

    @property
    def takes_requests(self) -> bool:
        return self.state == "ready" and self.engine is not None and self.engine.error is None

    @property
    def num_open(self) -> int:
        return 0 if self.engine is None else self.engine.num_open

    @property
    def status(self) -> ReplicaStatus:
        return ReplicaStatus(self.number, self.state, self.num_open, self.restarts, self.reason)

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_running())

    def drain(self, seconds: float | None) -> None:
        """Let the requests end, then the engine.

        Args:
            seconds: after which the rest goes on elsewhere; None: wait for all.
        """
        waits = self.takes_requests
        self.state = "draining"
        self._drain = asyncio.create_task(self._end(seconds if waits else 0.0))

    def resume(self) -> bool:
        """Go on after `drain`; False where it is too late."""
        alive = self.engine is not None and self.engine.error is None and self.was_ready
        if self._drain is None or self._ending or not alive:
            return False
        self._drain.cancel()
        self._drain = None
        self.state = "ready"
        return True

    async def stop(self) -> None:
        """End the engine at once. The requests that it has are left with it."""
        tasks = [task for task in (self._drain, self._task) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.engine is not None:
            await self.engine.stop()

    async def _keep_running(self) -> None:
        early = 0  # deaths in a row, of engines that had not lived for long
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
                    return  # whoever drains it does the rest
                self.failures = 0
                self.state = "ready"
                self.was_ready = loaded = True
                self._owner.became_ready(self)
                self.reason = await engine.died()
            if self.state == "draining":
                return
            self.state = "starting"
            self._owner.lost_engine(self)
            await engine.stop()
            if not loaded and self._owner.is_hopeless(self):
                self.state = "failed"
                self._owner.gave_up(self)
                return
            early = 0 if loaded and clock() - began >= self._patience.stable else early + 1
            # The first death after a good life may be a chance; it costs no time.
            await asyncio.sleep(self._patience.wait(early - loaded))
            self.restarts += 1

    async def _end(self, seconds: float | None) -> None:
        loop = asyncio.get_running_loop()
        deadline = None if seconds is None else loop.time() + seconds
        while self.engine is not None and self.engine.error is None and self.engine.num_open:
            if deadline is not None and loop.time() >= deadline:
                break
            await asyncio.sleep(_DRAIN_LOOK)
        self._ending = True
        self._owner.drained(self)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.engine is not None:
            await self.engine.stop()
        self._owner.ended(self)
