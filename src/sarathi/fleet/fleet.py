"""Several engines as one: who gets a request, and what becomes of it when an engine dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import msgspec

from sarathi.engine.config import MAX_REPLICAS
from sarathi.engine.messages import ModelInfo
from sarathi.fleet.dispatcher import Dispatcher
from sarathi.fleet.engine_api import ReplicaStatus
from sarathi.fleet.engine_client import EngineCallbacks
from sarathi.fleet.generation import (
    EngineError,
    Generation,
    RequestLostError,
    ShuttingDownError,
)
from sarathi.fleet.replica import EngineHandle, Replica, RestartPolicy
from sarathi.sampling.params import SamplingParams
from sarathi.scheduler import SchedulingParams
from sarathi.telemetry.request_latencies import Latencies, Stopwatch
from sarathi.telemetry.stats import Stats, combined, counters_only, initial_stats

_MOST_DEATHS = 3  # of engines that had a request, until it is taken to be the cause
_PLAIN = SchedulingParams()


@dataclass(frozen=True)
class LaunchSpec:
    """What an engine is started for."""

    number: int  # of its replica
    count: int  # engines started before, by any replica
    replicas: int  # that there are to be
    # What requests have been promised; None before the first is ready.
    max_model_len: int | None
    tbt_target: float | None  # seconds; None also where there is none


class Launcher(Protocol):
    def __call__(
        self, order: LaunchSpec, watcher: EngineCallbacks, report: Callable[[str], None]
    ) -> EngineHandle:
        """An engine, not started yet."""


class Fleet:
    """Engines that share the requests. Belongs to one event loop.

    A request goes to the engine that would be done with it first. When an engine dies it is started
    again, and what it had goes on elsewhere or waits for that: it is submitted with the tokens that
    have come, so that none is lost and none comes twice.
    """

    def __init__(
        self,
        launch: Launcher,
        replicas: int = 1,
        *,
        most_replicas: int = MAX_REPLICAS,
        report: Callable[[str], None] = lambda line: None,
        patience: RestartPolicy | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            most_replicas: that `scale` accepts.
            report: called with a line about what the engines do.
        """
        self.info: ModelInfo | None = None  # None until an engine is ready for the first time
        self.error: str | None = None  # why there is no engine any more, and will not be
        self.bad_input = False  # the model or an option is to blame for the error
        self.latencies = Latencies()
        self.restarts = 0
        self.resumed = 0
        self.most_replicas = most_replicas
        self._launch = launch
        self._wanted = replicas
        self._report = report
        self._patience = patience or RestartPolicy()
        self._replicas: dict[int, Replica] = {}
        self._dispatcher = Dispatcher()
        self._refusal: EngineError | None = None  # of all requests, once they are not wanted
        self._past: list[Stats] = []  # what engines that are gone have done, summed
        self._ids = count()
        self._launches = count()
        self._loaded = asyncio.Event()
        self._failed = asyncio.Event()

    # -- the engines ------------------------------------------------------------------------

    def start(self) -> None:
        """Start the engines and return at once; `loaded` waits for the first."""
        for _ in range(self._wanted):
            self._add()

    async def loaded(self) -> ModelInfo:
        """Wait until an engine is ready.

        Raises:
            EngineError: none can be started.
        """
        await self._loaded.wait()
        if self.info is None or self.error is not None:
            raise EngineError(self.error)
        return self.info

    async def failed(self) -> str:
        """Wait until there is no hope for any engine, and say why."""
        await self._failed.wait()
        return self.error or "the engines have stopped"

    def end_requests(self, error: EngineError) -> None:
        """Fail all open requests and those to come with `error`; the engines stay."""
        self._refusal = error
        self._dispatcher.fail(error)

    async def stop(self) -> None:
        """End all engines; open requests fail."""
        error = ShuttingDownError()
        self.end_requests(error)
        self._fail(str(error))
        await asyncio.gather(*(replica.stop() for replica in self._replicas.values()))

    def scale(self, replicas: int, drain_seconds: float | None = None) -> None:
        """Start or end engines until there are so many; returns at once.

        Those that end are the ones that serve nobody yet, then those with the least work. They
        get no more requests, and end when what they have has ended.

        Args:
            replicas: 1 to `most_replicas`.
            drain_seconds: after which what has not ended goes on elsewhere; None: wait for it.

        Raises:
            EngineError: there is no engine any more, and will not be.
            ValueError: the number is out of range.
        """
        if not 1 <= replicas <= self.most_replicas:
            raise ValueError(f"replicas is {replicas}, expected 1 to {self.most_replicas}")
        if self.error is not None:
            raise EngineError(self.error)
        self._wanted = replicas
        for replica in self._in_state("failed"):
            self.ended(replica)
        for replica in self._in_state("draining"):
            if len(self._staying()) < replicas and replica.resume():
                self._say(replica, "goes on")
                self._dispatcher.open(replica.number)
        while len(self._staying()) < replicas:
            self._add()
        staying = sorted(self._staying(), key=self._worth)
        for replica in staying[: len(staying) - replicas]:
            self._dispatcher.close(replica.number)
            replica.drain(drain_seconds)

    @property
    def replicas(self) -> Sequence[ReplicaStatus]:
        return [self._replicas[number].status for number in sorted(self._replicas)]

    @property
    def stats(self) -> Stats | None:
        parts = list(self._past)
        for replica in self._replicas.values():
            parts += _stats_of(replica)
        return combined(parts) if self.info is not None else None

    # -- requests ---------------------------------------------------------------------------

    def submit(
        self, prompt_ids: Sequence[int], params: SamplingParams, terms: SchedulingParams = _PLAIN
    ) -> Generation:
        """Queue one request, which waits where all engines are being started again.

        Raises:
            EngineError: no engine is ready for the first time, or will ever be ready again.
        """
        if self._refusal is not None:
            raise self._refusal
        if self.error is not None:
            raise EngineError(self.error)
        if self.info is None:
            raise EngineError("the model is still loading")
        stopwatch = Stopwatch(self.latencies, time.monotonic())
        forget = self._dispatcher.forget
        generation = Generation(next(self._ids), prompt_ids, params, terms, stopwatch, forget)
        self._dispatcher.send(generation)
        return generation

    # -- what replicas tell -----------------------------------------------------------------

    def became_ready(self, replica: Replica) -> None:
        engine = replica.engine
        assert engine is not None
        assert engine.info is not None
        if self.info is None:
            self.info = engine.info
        elif engine.info.max_model_len < self.info.max_model_len:
            self.info = msgspec.structs.replace(
                engine.info,
                tbt_target=self.info.tbt_target,
                tbt_target_reason=self.info.tbt_target_reason,
            )
        if replica.restarts:
            self._say(replica, "the engine is ready again")
        elif self._loaded.is_set():
            self._say(replica, "ready")
        self._loaded.set()
        self._dispatcher.add(replica.number, engine)

    def lost_engine(self, replica: Replica) -> None:
        orphans = self._dispatcher.remove(replica.number)
        if replica.was_ready:
            again = f"starting it again, {len(orphans)} open requests go on"
            self._say(replica, f"error: {replica.reason}; {again}")
        for generation in orphans:
            generation.deaths += 1
            if generation.deaths < _MOST_DEATHS:
                self._go_on(generation)
                continue
            generation.fail(
                RequestLostError(
                    f"the engine died {generation.deaths} times while it had this request, which "
                    "may be the reason and is not tried again"
                )
            )

    def is_hopeless(self, replica: Replica) -> bool:
        assert replica.engine is not None
        if not replica.was_ready and replica.engine.bad_input:
            return True  # neither the model nor the options will change
        if self.info is None and len(self._replicas) == 1:
            return True  # nobody is served: whoever starts it should know at once
        return replica.failures >= self._patience.starts

    def gave_up(self, replica: Replica) -> None:
        assert replica.engine is not None
        never = self.info is None
        self.bad_input = never and replica.engine.bad_input
        if self.bad_input or not self._staying():
            self._fail(replica.reason or "the engine cannot be started")
        elif not never:
            self._say(replica, f"error: given up: {replica.reason}")

    def drained(self, replica: Replica) -> None:
        for generation in self._dispatcher.remove(replica.number):
            self._go_on(generation)

    def ended(self, replica: Replica) -> None:
        self._keep_past(replica)
        del self._replicas[replica.number]
        self._say(replica, "ended")

    # ---------------------------------------------------------------------------------------

    def _go_on(self, generation: Generation) -> None:
        self.resumed += 1
        self._dispatcher.send(generation)

    def _fail(self, message: str) -> None:
        self.error = message
        self._loaded.set()
        self._failed.set()
        self._dispatcher.fail(EngineError(message))

    def _add(self) -> None:
        number = next(n for n in count() if n not in self._replicas)
        replica = Replica(number, self._order, self, self._patience)
        self._replicas[number] = replica
        replica.start()

    def _order(self, replica: Replica) -> EngineHandle:
        if replica.engine is not None:
            self._keep_past(replica)
            self.restarts += 1
        order = LaunchSpec(
            number=replica.number,
            count=next(self._launches),
            replicas=self._wanted,
            max_model_len=None if self.info is None else self.info.max_model_len,
            tbt_target=None if self.info is None else self.info.tbt_target,
        )
        return self._launch(order, self._dispatcher, lambda line: self._say(replica, line))

    def _keep_past(self, replica: Replica) -> None:
        """What its engine has done, which is about to be forgotten."""
        if parts := _stats_of(replica):
            self._past = [combined([*self._past, *map(counters_only, parts)])]

    def _staying(self) -> list[Replica]:
        gone = ("failed", "draining")
        return [replica for replica in self._replicas.values() if replica.state not in gone]

    def _in_state(self, state: str) -> list[Replica]:
        return [replica for replica in self._replicas.values() if replica.state == state]

    def _worth(self, replica: Replica) -> tuple[bool, float, int]:
        """Least of the one that is missed least."""
        number = replica.number
        return replica.takes_requests, self._dispatcher.work(number), -number

    def _say(self, replica: Replica, line: str) -> None:
        several = self._wanted > 1 or len(self._replicas) > 1
        self._report(f"replica {replica.number}: {line}" if several else line)


def _stats_of(replica: Replica) -> list[Stats]:
    """Those of its engine, if that has ever been ready."""
    engine = replica.engine
    if engine is None or engine.info is None:
        return []
    stats = engine.stats or initial_stats(engine.info.num_blocks, engine.info.num_stages)
    return [stats if engine.error is None else counters_only(stats)]
