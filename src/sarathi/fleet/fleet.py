"""Several engines as one: requests are shared among them, and outlive an engine that dies."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import msgspec

from sarathi.engine.config import MAX_REPLICAS, EngineConfig, share_of_machine
from sarathi.engine.messages import ModelInfo
from sarathi.fleet.engine_client import (
    EngineClient,
    EngineError,
    Generation,
    RequestLostError,
    ShuttingDownError,
)
from sarathi.fleet.router import Dispatcher
from sarathi.sampling.params import SamplingParams
from sarathi.scheduler import SchedulingParams
from sarathi.system.processes import LOCAL, Spawner
from sarathi.telemetry.request_latencies import Latencies, Stopwatch
from sarathi.telemetry.stats import Stats, combined, counters_only, initial_stats

_MAX_DEATHS = 3  # of engines that computed a request, until it is taken to be the cause
_DRAIN_POLL = 0.05  # seconds
_DEFAULT_SCHEDULING = SchedulingParams()

ReplicaState = Literal["ready", "starting", "draining", "failed"]


class ReplicaStatus(msgspec.Struct, frozen=True):
    """The state of one replica."""

    number: int
    state: ReplicaState
    requests: int  # that have not ended
    restarts: int
    reason: str | None = None  # why it failed, or was restarted the last time


def by_state(replicas: Sequence[ReplicaStatus]) -> dict[ReplicaState, int]:
    """Return the number of replicas in each state, 0 included."""
    states = [replica.state for replica in replicas]
    return {state: states.count(state) for state in get_args(ReplicaState)}


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


class Engines(Protocol):
    """What the server uses: a `Fleet`, or a scripted one in tests."""

    info: ModelInfo | None  # None until the model is loaded
    error: str | None  # why requests cannot be answered any more; None while they can
    latencies: Latencies  # of all requests so far
    restarts: int  # engines that were started because an earlier one had died
    resumed: int  # how many times a request was continued by another engine

    @property
    def stats(self) -> Stats | None:
        """The statistics of all engines, summed; None before the first is ready."""

    @property
    def replicas(self) -> Sequence[ReplicaStatus]:
        """The state of each replica, by number."""

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        scheduling_params: SchedulingParams = ...,
    ) -> Generation:
        """Queue one request; raise `EngineError` if no engine can answer it."""

    def scale(self, replicas: int, drain_seconds: float | None = None) -> None:
        """Start or end engines until there are so many; see `Fleet.scale`."""


class Fleet:
    """Engines that share the requests. Belongs to one event loop.

    A request goes to the engine that is predicted to finish it first. An engine that dies is
    restarted, and another one, or the restarted one, continues its requests: they are submitted
    with the tokens received so far, so that no token is lost or repeated.
    """

    def __init__(
        self,
        path: Path,
        config: EngineConfig,
        replicas: int = 1,
        *,
        spawner: Spawner = LOCAL,
        max_replicas: int = MAX_REPLICAS,
        log: Callable[[str], None] = lambda line: None,
        restart_policy: RestartPolicy | None = None,
    ) -> None:
        """Prepare a fleet; `start` launches the engines.

        Args:
            path: the model, as `open_model` takes it.
            config: of one engine that has the machine for itself.
            max_replicas: that `scale` accepts.
            log: called with a line about what the engines do.
        """
        self.info: ModelInfo | None = None  # None until an engine is ready for the first time
        self.error: str | None = None  # why no engine is left and none will be started
        self.bad_input = False  # the model or an option is the cause of the error
        self.latencies = Latencies()
        self.restarts = 0
        self.resumed = 0
        self.max_replicas = max_replicas
        self._path = path
        self._config = config
        self._spawner = spawner
        self._wanted = replicas
        self._log = log
        self._restart_policy = restart_policy or RestartPolicy()
        self._replicas: dict[int, Replica] = {}
        self._dispatcher = Dispatcher()
        self._refusal: EngineError | None = None  # of all requests, after `end_requests`
        self._past: list[Stats] = []  # of engines that have ended, summed
        self._ids = count()
        self._launches = count()
        self._loaded = asyncio.Event()
        self._failed = asyncio.Event()

    def start(self) -> None:
        """Start the engines and return at once; `loaded` waits for the first."""
        for _ in range(self._wanted):
            self._add_replica()

    async def loaded(self) -> ModelInfo:
        """Wait until an engine is ready; `EngineError` if none can be started."""
        await self._loaded.wait()
        if self.info is None or self.error is not None:
            raise EngineError(self.error)
        return self.info

    async def failed(self) -> str:
        """Wait until no engine is left and none will be started, and return why."""
        await self._failed.wait()
        return self.error or "the engines have stopped"

    def end_requests(self, error: EngineError) -> None:
        """Fail all open and all later requests with `error`; the engines stay."""
        self._refusal = error
        self._dispatcher.fail(error)

    async def stop(self) -> None:
        """End all engines; open requests fail."""
        error = ShuttingDownError()
        self.end_requests(error)
        self._fail(str(error))
        ends = [_end(one, one.draining, one.running) for one in self._replicas.values()]
        await asyncio.gather(*ends)

    def scale(self, replicas: int, drain_seconds: float | None = None) -> None:
        """Start or end engines until there are so many; returns at once.

        Engines that are not ready end first, then those with the least work. They get no more
        requests, and end when their open requests have ended.

        Args:
            replicas: 1 to `max_replicas`.
            drain_seconds: after which open requests continue in other engines; None: wait for them.

        Raises:
            EngineError: no engine is left and none will be started.
            ValueError: the number is out of range.
        """
        if not 1 <= replicas <= self.max_replicas:
            raise ValueError(f"replicas is {replicas}, expected 1 to {self.max_replicas}")
        if self.error is not None:
            raise EngineError(self.error)
        self._wanted = replicas
        for replica in self._in_state("failed"):
            self._forget(replica)
        for replica in self._in_state("draining"):
            if len(self._active()) < replicas:
                self._resume(replica)
        while len(self._active()) < replicas:
            self._add_replica()
        active = sorted(self._active(), key=self._interruption)
        for replica in active[: len(active) - replicas]:
            self._dispatcher.pause(replica.number)
            seconds = drain_seconds if replica.state == "ready" and replica.is_alive else 0.0
            replica.state = "draining"
            replica.draining = asyncio.create_task(self._drain(replica, seconds))

    @property
    def replicas(self) -> Sequence[ReplicaStatus]:
        return [self._replicas[number].status for number in sorted(self._replicas)]

    @property
    def stats(self) -> Stats | None:
        parts = list(self._past)
        for replica in self._replicas.values():
            parts += _stats_of(replica)
        return combined(parts) if self.info is not None else None

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        scheduling_params: SchedulingParams = _DEFAULT_SCHEDULING,
    ) -> Generation:
        """Queue one request; it waits while all engines are being restarted.

        `EngineError` if no engine has been ready yet, or will ever be ready again.
        """
        if self._refusal is not None:
            raise self._refusal
        if self.error is not None:
            raise EngineError(self.error)
        if self.info is None:
            raise EngineError("the model is still loading")
        generation = Generation(
            next(self._ids),
            prompt_ids,
            params,
            scheduling_params,
            Stopwatch(self.latencies, time.monotonic()),
            self._dispatcher.cancel,
        )
        self._dispatcher.send(generation)
        return generation

    # -- the life of a replica ----------------------------------------------------------------

    def _add_replica(self) -> None:
        replica = Replica(next(n for n in count() if n not in self._replicas))
        self._replicas[replica.number] = replica
        replica.running = asyncio.create_task(self._keep_running(replica))

    async def _keep_running(self, replica: Replica) -> None:
        """Start an engine, and another one whenever it dies, until the replica ends or fails."""
        early = 0  # deaths in a row of engines that had not lived for long
        policy, clock = self._restart_policy, asyncio.get_running_loop().time
        while True:
            began = clock()
            engine = self._start_engine(replica)
            try:
                info = await engine.loaded()
            except EngineError as error:
                replica.reason = str(error)
                replica.failures += 1
                loaded = False
            else:
                if replica.state == "draining":
                    return  # `_drain` does the rest
                self._on_ready(replica, engine, info)
                loaded = True
                replica.reason = await engine.died()
            if replica.state == "draining":
                return
            replica.state = "starting"
            self._continue_elsewhere(replica)
            await engine.stop()
            if not loaded and self._gives_up(replica, engine):
                replica.state = "failed"
                self._on_failed(replica, engine)
                return
            early = 0 if loaded and clock() - began >= policy.stable_after else early + 1
            # A first death may be an accident: there is no delay after it.
            await asyncio.sleep(policy.delay(early - loaded))
            replica.restarts += 1

    def _start_engine(self, replica: Replica) -> EngineClient:
        if replica.engine is not None:
            self._keep_past(replica)
            self.restarts += 1
        config = self._engine_config(replica.number, next(self._launches))
        log = partial(self._log_of, replica)
        engine = EngineClient(self._path, config, self._dispatcher, spawner=self._spawner, log=log)
        replica.engine = engine
        engine.start()
        return engine

    def _on_ready(self, replica: Replica, engine: EngineClient, info: ModelInfo) -> None:
        replica.failures = 0
        replica.state = "ready"
        replica.was_ready = True
        if self.info is None:
            self.info = info
        elif info.max_model_len < self.info.max_model_len:
            self.info = msgspec.structs.replace(
                info,
                tbt_target=self.info.tbt_target,
                tbt_target_reason=self.info.tbt_target_reason,
            )
        if replica.restarts:
            self._log_of(replica, "the engine is ready again")
        elif self._loaded.is_set():
            self._log_of(replica, "ready")
        self._loaded.set()
        self._dispatcher.add(replica.number, engine)

    def _continue_elsewhere(self, replica: Replica) -> None:
        """Continue the requests of a dead engine in others, unless they may be the cause."""
        orphans = self._dispatcher.remove(replica.number)
        if replica.was_ready:
            again = f"starting it again, {len(orphans)} open requests go on"
            self._log_of(replica, f"error: {replica.reason}; {again}")
        for generation in orphans:
            generation.deaths += 1
            if generation.deaths < _MAX_DEATHS:
                self._continue(generation)
                continue
            generation.fail(
                RequestLostError(
                    f"the engine died {generation.deaths} times while it had this request, which "
                    "may be the reason and is not tried again"
                )
            )

    def _gives_up(self, replica: Replica, engine: EngineClient) -> bool:
        """Return whether a replica is given up after its latest failure to start."""
        if not replica.was_ready and engine.bad_input:
            return True  # neither the model nor the options will change
        if self.info is None and len(self._replicas) == 1:
            return True  # there are no requests yet: the operator should know at once
        return replica.failures >= self._restart_policy.max_failed_starts

    def _on_failed(self, replica: Replica, engine: EngineClient) -> None:
        never = self.info is None
        self.bad_input = never and engine.bad_input
        if self.bad_input or not self._active():
            self._fail(replica.reason or "the engine cannot be started")
        elif not never:
            self._log_of(replica, f"error: given up: {replica.reason}")

    async def _drain(self, replica: Replica, seconds: float | None) -> None:
        """Wait for the open requests of a replica, up to some seconds, and end it."""
        clock = asyncio.get_running_loop().time
        deadline = math.inf if seconds is None else clock() + seconds
        while replica.is_alive and replica.status.requests and clock() < deadline:
            await asyncio.sleep(_DRAIN_POLL)
        replica.ending = True
        for generation in self._dispatcher.remove(replica.number):
            self._continue(generation)
        await _end(replica, replica.running)
        self._forget(replica)

    def _resume(self, replica: Replica) -> None:
        """Let a draining replica take requests again, unless it is too late."""
        if replica.draining is None or replica.ending or not replica.was_ready:
            return
        if replica.is_alive:
            replica.draining.cancel()
            replica.draining = None
            replica.state = "ready"
            self._log_of(replica, "takes requests again")
            self._dispatcher.resume(replica.number)

    def _forget(self, replica: Replica) -> None:
        """Forget a replica that has ended, but not its counters."""
        self._keep_past(replica)
        del self._replicas[replica.number]
        self._log_of(replica, "ended")

    # -----------------------------------------------------------------------------------------

    def _continue(self, generation: Generation) -> None:
        self.resumed += 1
        self._dispatcher.send(generation)

    def _fail(self, message: str) -> None:
        self.error = message
        self._loaded.set()
        self._failed.set()
        self._dispatcher.fail(EngineError(message))

    def _engine_config(self, number: int, launches: int) -> EngineConfig:
        """Return the configuration of an engine of replica `number`, after so many launches.

        Its files are numbered, since an engine empties its files when it starts; it keeps the
        limits that requests rely on; and it gets its share of the machine.
        """
        changes: dict[str, Any] = {
            name: _numbered(getattr(self._config, name), launches)
            for name in ("iteration_log", "trace")
        }
        if self.info is not None:
            changes["max_model_len"] = self.info.max_model_len
            if self.info.tbt_target is not None and self._config.latency_budget:
                changes["tbt_target"] = self.info.tbt_target
        config = msgspec.structs.replace(self._config, **changes)
        if self._spawner.host is None and self._wanted > 1:
            config = share_of_machine(config, self._wanted, number)
        return config

    def _keep_past(self, replica: Replica) -> None:
        """Keep the counters of an engine that is about to be forgotten."""
        if parts := _stats_of(replica):
            self._past = [combined([*self._past, *map(counters_only, parts)])]

    def _active(self) -> list[Replica]:
        return self._in_state("starting") + self._in_state("ready")

    def _in_state(self, state: ReplicaState) -> list[Replica]:
        return [replica for replica in self._replicas.values() if replica.state == state]

    def _interruption(self, replica: Replica) -> tuple[bool, float, int]:
        """Return a key that sorts replicas by how much ending them would interrupt."""
        number = replica.number
        takes_requests = replica.state == "ready" and replica.is_alive
        return takes_requests, self._dispatcher.work(number), -number

    def _log_of(self, replica: Replica, line: str) -> None:
        several = self._wanted > 1 or len(self._replicas) > 1
        self._log(f"replica {replica.number}: {line}" if several else line)


async def _end(replica: Replica, *tasks: asyncio.Task[None] | None) -> None:
    """Cancel tasks of a replica and end its engine at once. Its requests stay with it."""
    present = [task for task in tasks if task is not None]
    for task in present:
        task.cancel()
    await asyncio.gather(*present, return_exceptions=True)
    if replica.engine is not None:
        await replica.engine.stop()


def _stats_of(replica: Replica) -> list[Stats]:
    """Return the statistics of a replica's engine, if that has ever been ready."""
    engine = replica.engine
    if engine is None or engine.info is None:
        return []
    stats = engine.stats or initial_stats(engine.info.num_blocks, engine.info.num_stages)
    return [stats if engine.error is None else counters_only(stats)]


def _numbered(name: str | None, number: int) -> str | None:
    """Return `log.1.jsonl` for `log.jsonl` and 1; the name itself for 0."""
    if name is None or not number:
        return name
    path = Path(name)
    return str(path.with_name(f"{path.stem}.{number}{path.suffix}"))
