"""The engine process.

`EngineClient` starts it through a `Spawner`. It owns the scheduler and the executor, and exchanges
msgpack messages with the HTTP process over one ZeroMQ socket.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import zmq

from sarathi.engine import messages
from sarathi.engine.config import Launch
from sarathi.engine.core import EngineCore, StepOutcome
from sarathi.engine.startup.load import load_engine
from sarathi.errors import ConfigError, ExecutorError, ModelError
from sarathi.scheduler import AdmissionError
from sarathi.system.processes import LOCAL, Spawner, leave_signals_to_parent, parent_lives
from sarathi.telemetry.stats import Stats

_RECEIVE_SECONDS = 0.005  # of an iteration, for reading messages
_IDLE_POLL = 500  # milliseconds between checks that the parent is alive
_STATS_INTERVAL = 1.0  # seconds until statistics are sent without tokens, while there is work
_LOG_INTERVAL = 60.0  # seconds between log lines about the load, while there is work
_CLOCK_INTERVAL = 10.0  # seconds between clock readings for another machine, whose clock drifts

logger = logging.getLogger(__name__)


class EngineProcess:
    """Runs an engine for the process at the other end of a socket."""

    def __init__(self, socket: zmq.Socket[bytes], *, remote: bool = False) -> None:
        """Serve the other end of `socket`; if `remote`, it is a machine with another clock."""
        self._socket = socket
        self._remote = remote
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(messages.ToEngine)
        self._sending = threading.Lock()  # other threads send the progress of loading
        self._refusals: list[messages.Refusal] = []
        self._stopping = False
        self._sent = self._logged = self._clock = time.monotonic()

    def send(self, message: messages.FromEngine) -> None:
        """Send a message; may be called from any thread."""
        with self._sending:
            self._socket.send(self._encoder.encode(message))

    def send_clock(self) -> None:
        """Send this machine's time if the other end is on another machine."""
        if self._remote:
            self._clock = time.monotonic()
            self.send(messages.ClockReading(self._clock))

    def run(self, core: EngineCore, is_orphaned: Callable[[], bool] = lambda: False) -> None:
        """Serve until the other end sends `Shutdown`, or has died."""
        while not (self._stopping or is_orphaned()):
            changed = self._receive(core, 0 if core.has_work else _IDLE_POLL)
            has_work = core.has_work
            if not has_work:
                core.check()
            outputs, failures = core.step() if has_work else StepOutcome([], [])
            now = time.monotonic()
            stale = has_work and now >= self._sent + _STATS_INTERVAL
            if outputs or failures or changed or stale:
                self._sent = now
                self.send(messages.Iteration(outputs, self._refusals + failures, core.stats))
                self._refusals = []
            if outputs and now > self._logged + _LOG_INTERVAL:
                self._logged = now
                self.send(messages.LoadProgress(progress_line(core.stats)))
            if now > self._clock + _CLOCK_INTERVAL:
                self.send_clock()

    def _receive(self, core: EngineCore, timeout: int) -> bool:
        """Handle messages, waiting up to `timeout` ms for the first; return whether there was one.

        After `_RECEIVE_SECONDS` the rest waits for the next iteration: a request with a thousand
        choices must not stop running requests until all of them have been read.
        """
        if not self._socket.poll(timeout):
            return False
        end = time.monotonic() + _RECEIVE_SECONDS
        while time.monotonic() < end:
            try:
                message = self._decoder.decode(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return True
            if isinstance(message, messages.Submit):
                self._submit(core, message)
            elif isinstance(message, messages.Cancel):
                for request_id in message.ids:
                    core.cancel(request_id)
            elif isinstance(message, messages.Shutdown):
                self._stopping = True
        return True

    def _submit(self, core: EngineCore, message: messages.Submit) -> None:
        try:
            core.submit(
                message.id,
                message.prompt_ids,
                message.params,
                message.arrival,
                message.scheduling_params,
                message.output_ids,
                message.num_scored,
            )
        except AdmissionError as error:
            self._refusals.append(messages.Refusal(message.id, str(error)))


def progress_line(stats: Stats) -> str:
    """Return a line for the log about the load."""
    hits = 100 * stats.cached_tokens / max(1, stats.prompt_tokens)
    return (
        f"{stats.running} running, {stats.waiting} waiting; predicted iteration times are off by "
        f"{100 * stats.model_error_median:.1f} % (median) and {100 * stats.model_error_p90:.1f} % "
        f"(P90); {hits:.0f} % of prompt tokens came from the prefix cache"
    )


def main(arguments: Sequence[str], spawner: Spawner = LOCAL) -> int:
    """Run an engine until it is shut down; returns an exit status.

    The arguments are the endpoint to connect to, and a `Launch` as JSON. `spawner` starts the
    other processes of the engine, if there are any.
    """
    endpoint, text = arguments
    launch = msgspec.json.decode(text, type=Launch)
    leave_signals_to_parent()
    connection = messages.EngineConnection(endpoint)
    try:
        if not connection.wait_connected():
            logger.error("the HTTP process cannot be reached at %s", endpoint)
            return 1
        return _serve(launch, connection, spawner)
    finally:
        connection.close()


def _serve(launch: Launch, connection: messages.EngineConnection, spawner: Spawner) -> int:
    process = EngineProcess(connection.socket, remote=connection.remote)
    process.send_clock()

    def is_orphaned() -> bool:
        return connection.is_lost() or not parent_lives(launch.parent)

    try:
        try:
            core, info = load_engine(
                Path(launch.path),
                launch.config,
                lambda line: process.send(messages.LoadProgress(line)),
                spawner,
                prepare_grammars=True,
            )
        except (ModelError, ConfigError, ExecutorError) as error:
            process.send(messages.EngineFailed(str(error), bad_input=True))
            return 2
        try:
            model = core.scheduler.latency_model
            process.send_clock()
            process.send(messages.Ready(info, (0.0,) * 5 if model is None else model.coefficients))
            process.run(core, is_orphaned)
        finally:
            core.close()
    except ExecutorError as error:
        process.send(messages.EngineFailed(f"the engine died: {error}"))
        return 1
    except Exception as error:  # the parent must learn of any error
        logger.exception("the engine died")
        process.send(messages.EngineFailed(f"the engine died: {type(error).__name__}: {error}"))
        return 1
    return 0
