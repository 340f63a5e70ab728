"""Sends requests at their times, whatever becomes of them (open loop), and records the answers."""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from sarathi.bench.client.answer import Answer
from sarathi.bench.client.client_connection import Address, ClientConnection, Clock, locate
from sarathi.bench.client.client_lag import LagMeter
from sarathi.bench.client.endpoint import Endpoint
from sarathi.bench.client.request_format import Call, Dialect, request
from sarathi.bench.client.run_listener import RunListener, RunListeners
from sarathi.bench.results import Lag
from sarathi.telemetry import RequestRecord

_VERDICT_INTERVAL = 0.25  # seconds
_SPARE_FILES = 256  # for what the process has open already


@dataclass(frozen=True)
class Played:
    """What became of the calls."""

    records: list[RequestRecord]  # of requests that ended, in the order of the calls
    indices: list[int]  # of their calls
    lag: Lag
    stopped: str | None  # why the watch ended the run
    began: float  # Unix time


async def play(
    endpoint: Endpoint,
    dialect: Dialect,
    calls: Sequence[Call],
    *,
    timeout: float,
    watch: RunListener | None = None,
) -> Played:
    """Send all calls and wait for their answers.

    Whatever a server does becomes a record. It ends at the latest `timeout` after the last request
    is sent and the last token of any of them has come.

    Args:
        timeout: seconds without a token, since the last one or since sending, after which a
            request has failed.
        watch: told of everything, and may stop the run.
    """
    requests = [request(endpoint, dialect, call) for call in calls]
    address = await locate(endpoint)
    _allow_open_files(len(calls))
    with _collector_paused():
        run = _Run(calls, requests, address, dialect.ignore_eos, timeout, watch or RunListeners(()))
        return await run.play()


class _Run:
    """Time begins when it is made."""

    def __init__(
        self,
        calls: Sequence[Call],
        requests: Sequence[bytes],
        address: Address,
        exact: bool,
        timeout: float,
        watch: RunListener,
    ) -> None:
        """
        Args:
            exact: an answer with fewer tokens than asked for has failed.
        """
        self._calls = calls
        self._requests = requests
        self._address = address
        self._exact = exact
        self._timeout = timeout
        self._watch = watch
        self._open: dict[int, ClientConnection] = {}
        self._records: dict[int, RequestRecord] = {}
        self._began = time.time()
        self._clock = Clock(time.perf_counter())
        self._lag = LagMeter()

    async def play(self) -> Played:
        sender = asyncio.get_running_loop().create_task(self._send_all())
        try:
            stopped = await self._look_on(sender)
        finally:
            sender.cancel()
            for connection in self._open.values():
                connection.cut()
        indices = sorted(self._records)
        return Played(
            records=[self._records[index] for index in indices],
            indices=indices,
            lag=self._lag.result(self._clock.now()),
            stopped=stopped,
            began=self._began,
        )

    async def _look_on(self, sender: asyncio.Task[None]) -> str | None:
        """Keep the heartbeat until all have ended, or the watch has seen enough."""
        asked = 0.0
        while len(self._records) < len(self._calls):
            await asyncio.sleep(max(0.0, self._lag.due - self._clock.now()))
            now = self._clock.now()
            self._lag.beat(now)
            if now - asked >= _VERDICT_INTERVAL:
                asked = now
                reason = self._watch.verdict(now)
                if reason is not None:
                    return reason
            if sender.done():
                sender.result()  # raises what the watch has
        return None

    async def _send_all(self) -> None:
        for index in sorted(range(len(self._calls)), key=lambda index: self._calls[index].at):
            # Timers of uvloop count milliseconds and may be early by half of one.
            while (wait := self._calls[index].at - self._clock.now()) > 0:
                await asyncio.sleep(wait)
            self._send(index)
            await asyncio.sleep(0)  # a burst must not keep the connections from being made

    def _send(self, index: int) -> None:
        call = self._calls[index]
        answer = Answer(call.output_tokens, self._exact)
        arrival = self._clock.now()
        connection = ClientConnection(
            self._requests[index],
            answer,
            clock=self._clock,
            timeout=self._timeout,
            progressed=partial(self._watch.progressed, index),
            ended=partial(self._end, index, answer, arrival),
        )
        self._open[index] = connection
        self._lag.sent(arrival - call.at)
        self._watch.sent(index, arrival)
        connection.open(self._address)

    def _end(self, index: int, answer: Answer, arrival: float, now: float) -> None:
        call = self._calls[index]
        usage = answer.times.usage
        failure = answer.failure
        told = usage.prompt_tokens if usage is not None else None
        record = RequestRecord(
            arrival=arrival,
            prompt_tokens=call.prompt_tokens if told is None else told,
            output_tokens=call.output_tokens,
            tokens=answer.tokens,
            end=now,
            scheduling_delay=answer.scheduling_delay,
            cached_tokens=usage.cached_tokens if usage is not None else 0,
            failure=failure.kind if failure is not None else None,
            detail=failure.detail if failure is not None else None,
            estimated=answer.estimated,
            lag=arrival - call.at,
        )
        self._records[index] = record
        del self._open[index]
        self._watch.ended(index, record)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """A collection in the middle of a run would be measured as a gap between tokens."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def _allow_open_files(connections: int) -> None:
    """All requests may be open at once; what the system then still refuses is the client's
    failure."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
