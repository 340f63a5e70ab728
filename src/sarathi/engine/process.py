"""The engine process.

Started by `EngineClient` through a `Spawner`, never by hand. It owns the scheduler and the
executor, computes, and speaks msgpack over one ZeroMQ socket.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import zmq

from sarathi.engine.config import Launch
from sarathi.engine.connection import EngineConnection
from sarathi.engine.core import EngineCore, StepOutcome
from sarathi.engine.messages import (
    Cancel,
    ClockReading,
    EngineFailed,
    FromEngine,
    Iteration,
    LoadProgress,
    Ready,
    Refusal,
    Shutdown,
    Submit,
    ToEngine,
)
from sarathi.engine.startup.load import load_engine
from sarathi.errors import ConfigError, ExecutorError, ModelError
from sarathi.scheduler import AdmissionError
from sarathi.system.processes import LOCAL, Spawner, leave_signals_to_parent, parent_lives
from sarathi.telemetry.stats import Stats

_INTAKE = 0.005  # seconds of an iteration for reading messages
_IDLE_POLL = 500  # milliseconds between looks at whether the parent lives
_FRESH = 1.0  # seconds until statistics are sent without tokens, while there is work
_TELL = 60.0  # seconds between lines about how it goes, while there is work
_CLOCK = 10.0  # seconds between times told to another machine, whose clock drifts

logger = logging.getLogger(__name__)


class EngineProcess:
    """Runs an engine for the process at the other end of a socket."""

    def __init__(self, socket: zmq.Socket[bytes], *, remote: bool = False) -> None:
        """
        Args:
            remote: whether the other end is on another machine, with another clock.
        """
        self._socket = socket
        self._remote = remote
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._sending = threading.Lock()  # progress of loading is told by other threads, too
        self._refusals: list[Refusal] = []
        self._stopping = False
        self._sent = self._told = self._clock = time.monotonic()

    def send(self, message: FromEngine) -> None:
        with self._sending:
            self._socket.send(self._encoder.encode(message))

    def tell_clock(self) -> None:
        if self._remote:
            self._clock = time.monotonic()
            self.send(ClockReading(self._clock))

    def run(self, core: EngineCore, orphaned: Callable[[], bool] = lambda: False) -> None:
        """Serve until the other end says so.

        Args:
            orphaned: whether the other end has gone.
        """
        while not (self._stopping or orphaned()):
            changed = self._receive(core, 0 if core.has_work else _IDLE_POLL)
            works = core.has_work
            if not works:
                core.check()
            outputs, failures = core.step() if works else StepOutcome([], [])
            now = time.monotonic()
            stale = works and now >= self._sent + _FRESH
            if outputs or failures or changed or stale:
                self._sent = now
                self.send(Iteration(outputs, self._refusals + failures, core.stats))
                self._refusals = []
            if outputs and now > self._told + _TELL:
                self._told = now
                self.send(LoadProgress(progress_line(core.stats)))
            if now > self._clock + _CLOCK:
                self.tell_clock()

    def _receive(self, core: EngineCore, timeout: int) -> bool:
        """Take in the messages that are there, waiting up to `timeout` ms for the first.

        After `_INTAKE` the rest waits for the next iteration: a request with a thousand choices
        must not make those that run wait until all of them have been read.
        """
        if not self._socket.poll(timeout):
            return False
        end = time.monotonic() + _INTAKE
        while time.monotonic() < end:
            try:
                message = self._decoder.decode(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return True
            if isinstance(message, Submit):
                self._submit(core, message)
            elif isinstance(message, Cancel):
                for request_id in message.ids:
                    core.cancel(request_id)
            elif isinstance(message, Shutdown):
                self._stopping = True
        return True

    def _submit(self, core: EngineCore, message: Submit) -> None:
        try:
            core.submit(
                message.id,
                message.prompt_ids,
                message.params,
                message.arrival,
                message.terms,
                message.output_ids,
            )
        except AdmissionError as error:
            self._refusals.append(Refusal(message.id, str(error)))


def progress_line(stats: Stats) -> str:
    """A line for whoever watches the server."""
    hits = 100 * stats.cached_tokens / max(1, stats.prompt_tokens)
    return (
        f"{stats.running} running, {stats.waiting} waiting; predicted iteration times are off by "
        f"{100 * stats.model_error_median:.1f} % (median) and {100 * stats.model_error_p90:.1f} % "
        f"(P90); {hits:.0f} % of prompt tokens came from the prefix cache"
    )


def main(arguments: Sequence[str], spawner: Spawner = LOCAL) -> int:
    """Run an engine to its end; returns an exit status.

    Args:
        arguments: the endpoint to connect to, and a `Launch` as JSON.
        spawner: starts the other processes of the engine, if it has any.
    """
    endpoint, text = arguments
    launch = msgspec.json.decode(text, type=Launch)
    leave_signals_to_parent()
    connection = EngineConnection(endpoint)
    try:
        if not connection.reached():
            logger.error("the HTTP process cannot be reached at %s", endpoint)
            return 1
        return _serve(launch, connection, spawner)
    finally:
        connection.close()


def _serve(launch: Launch, connection: EngineConnection, spawner: Spawner) -> int:
    process = EngineProcess(connection.socket, remote=connection.remote)
    process.tell_clock()

    def orphaned() -> bool:
        return connection.lost() or not parent_lives(launch.parent)

    try:
        try:
            core, info = load_engine(
                Path(launch.path),
                launch.config,
                lambda line: process.send(LoadProgress(line)),
                spawner,
            )
        except (ModelError, ConfigError, ExecutorError) as error:
            process.send(EngineFailed(str(error), bad_input=True))
            return 2
        try:
            model = core.scheduler.latency_model
            process.tell_clock()
            process.send(Ready(info, (0.0,) * 5 if model is None else model.coefficients))
            process.run(core, orphaned)
        finally:
            core.close()
    except ExecutorError as error:
        process.send(EngineFailed(f"the engine died: {error}"))
        return 1
    except Exception as error:  # the parent must learn of it, whatever it is
        logger.exception("the engine died")
        process.send(EngineFailed(f"the engine died: {type(error).__name__}: {error}"))
        return 1
    return 0
