"""The engine process.

Started by `EngineClient`, never by hand. It owns the scheduler and the executor, computes, and
speaks msgpack over one ZeroMQ socket.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path

import msgspec
import zmq

from sarathi.engine.config import ConfigError, Launch
from sarathi.engine.core import EngineCore, Outcome
from sarathi.engine.load import load_engine
from sarathi.engine.messages import (
    Cancel,
    Failed,
    FromEngine,
    Iteration,
    Progress,
    Ready,
    Refusal,
    Shutdown,
    Stats,
    Submit,
    ToEngine,
)
from sarathi.executors.errors import ExecutorError
from sarathi.models.config import ModelError
from sarathi.scheduling import AdmissionError

_IDLE_POLL = 500  # milliseconds between looks at whether the parent lives
_FRESH = 1.0  # seconds until statistics are sent without tokens, while there is work
_TELL = 60.0  # seconds between lines about how it goes, while there is work

logger = logging.getLogger(__name__)


class EngineProcess:
    """Runs an engine for the process at the other end of a socket."""

    def __init__(self, socket: zmq.Socket[bytes], parent: int) -> None:
        self._socket = socket
        self._parent = parent
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._refusals: list[Refusal] = []
        self._stopping = False
        self._sent = self._told = time.monotonic()

    def send(self, message: FromEngine) -> None:
        self._socket.send(self._encoder.encode(message))

    def run(self, core: EngineCore) -> None:
        """Serve until the other end says so or has gone."""
        while not self._stopping and os.getppid() == self._parent:
            changed = self._receive(core, 0 if core.has_work else _IDLE_POLL)
            works = core.has_work
            outputs, failures = core.step() if works else Outcome([], [])
            stale = works and time.monotonic() >= self._sent + _FRESH
            if outputs or failures or changed or stale:
                self._sent = time.monotonic()
                self.send(Iteration(outputs, self._refusals + failures, core.stats))
                self._refusals = []
            if outputs and time.monotonic() > self._told + _TELL:
                self._told = time.monotonic()
                self.send(Progress(progress_line(core.stats)))

    def _receive(self, core: EngineCore, timeout: int) -> bool:
        """Take in all messages that are there, waiting up to `timeout` ms for the first."""
        if not self._socket.poll(timeout):
            return False
        while True:
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

    def _submit(self, core: EngineCore, message: Submit) -> None:
        try:
            core.submit(
                message.id, message.prompt_ids, message.params, message.arrival, message.terms
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


def main() -> int:
    endpoint, text = sys.argv[1:]
    launch = msgspec.json.decode(text, type=Launch)
    # Both may reach the whole process group; it is the parent that decides what they mean.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.set_hwm(0)  # a slow reader at the other end must not stop the loop
    socket.connect(endpoint)
    process = EngineProcess(socket, launch.parent)
    try:
        core, info = load_engine(
            Path(launch.path), launch.config, lambda line: process.send(Progress(line))
        )
        process.send(Ready(info))
        try:
            process.run(core)
        finally:
            core.close()
    except (ModelError, ConfigError, ExecutorError) as error:
        process.send(Failed(str(error), bad_input=True))
        return 2
    except Exception as error:  # the parent must learn of it, whatever it is
        logger.exception("the engine died")
        process.send(Failed(f"the engine died: {type(error).__name__}: {error}"))
        return 1
    finally:
        context.destroy(linger=1000)
    return 0
