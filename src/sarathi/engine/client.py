"""The HTTP process's end of the connection to the engine process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec
import zmq
import zmq.asyncio

from sarathi.engine.config import EngineConfig, Launch
from sarathi.engine.generation import EngineError, Generation
from sarathi.engine.latencies import Latencies, Stopwatch
from sarathi.engine.messages import (
    Cancel,
    Failed,
    FromEngine,
    Iteration,
    ModelInfo,
    Progress,
    Ready,
    Shutdown,
    Stats,
    Submit,
    ToEngine,
)
from sarathi.engine.sampling import SamplingParams
from sarathi.scheduling import Terms

# Not `-m`, which would let files in the current folder pass for modules.
_START = """import sys
sys.path[:] = filter(None, sys.path)
from sarathi.engine.process import main
sys.exit(main())"""
_SHUTDOWN_SECONDS = 5.0
_LIVENESS_SECONDS = 0.2
_PLAIN = Terms()
_MAX_FOLDER = 90  # characters: the path of a socket has at most 107


class Engine(Protocol):
    """What a server needs of an engine: `EngineClient`, or a scripted one in tests."""

    @property
    def info(self) -> ModelInfo | None:
        """None until the model is loaded."""

    @property
    def error(self) -> str | None:
        """Why the engine cannot answer any more, None while it can."""

    @property
    def stats(self) -> Stats | None:
        """The scheduler's state after the latest iteration."""

    @property
    def latencies(self) -> Latencies:
        """Of all requests so far."""

    def submit(
        self, prompt_ids: Sequence[int], params: SamplingParams, terms: Terms = ...
    ) -> Generation:
        """Queue one request; `EngineError` where the engine is not ready or has died."""


class EngineClient:
    """Starts an engine process and talks to it. Belongs to one event loop."""

    def __init__(
        self, path: Path, config: EngineConfig, report: Callable[[str], None] = lambda line: None
    ) -> None:
        """Nothing is started yet.

        Args:
            path: the model, as `open_model` takes it.
            report: called with a line about what the engine does.
        """
        self.info: ModelInfo | None = None  # None until the model is loaded
        self.error: str | None = None  # why the engine cannot answer any more
        self.stats: Stats | None = None  # after the latest iteration
        self.latencies = Latencies()
        self.bad_input = False  # the model or an option is to blame for the error
        self._path = path
        self._config = config
        self._report = report
        self._generations: dict[int, Generation] = {}
        self._next_id = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._loaded = asyncio.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the process and return at once; `loaded` waits for it."""
        # A socket file of our own, so that two engines on a machine never meet.
        self._folder = tempfile.TemporaryDirectory(prefix="sarathi-")
        if len(self._folder.name) > _MAX_FOLDER:
            self._folder.cleanup()
            self._folder = tempfile.TemporaryDirectory(prefix="sarathi-", dir="/tmp")
        endpoint = f"ipc://{self._folder.name}/engine"
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._socket.bind(endpoint)
        launch = Launch(str(self._path), self._config, os.getpid())
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _START,
                endpoint,
                msgspec.json.encode(launch).decode(),
            ],
            stdin=subprocess.DEVNULL,
        )
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._watch())]

    async def loaded(self) -> ModelInfo:
        """Wait until the model can answer.

        Raises:
            EngineError: it could not be loaded.
        """
        await self._loaded.wait()
        if self.info is None or self.error is not None:
            raise EngineError(self.error)
        return self.info

    async def failed(self) -> str:
        """Wait until the engine has died, and say why."""
        await asyncio.gather(*self._tasks)
        return self.error or "the engine has stopped"

    def submit(
        self, prompt_ids: Sequence[int], params: SamplingParams, terms: Terms = _PLAIN
    ) -> Generation:
        """Queue one request.

        Raises:
            EngineError: the engine is not ready or has died.
        """
        if self.error is not None:
            raise EngineError(self.error)
        if self.info is None:
            raise EngineError("the model is still loading")
        request_id = self._next_id
        self._next_id += 1
        arrival = time.monotonic()
        stopwatch = Stopwatch(self.latencies, arrival)
        generation = Generation(stopwatch, partial(self._forget, request_id))
        self._generations[request_id] = generation
        self._send(Submit(request_id, list(prompt_ids), params, arrival, terms))
        return generation

    async def stop(self) -> None:
        """End the process; open requests fail."""
        process = self._process
        if process is None:
            return
        if self.info is None:
            process.kill()  # deaf while it loads, and nothing is lost
        self._die("the server is shutting down")
        self._send(Shutdown())
        for _ in range(int(_SHUTDOWN_SECONDS / 0.05)):
            if process.poll() is not None:
                break
            await asyncio.sleep(0.05)
        else:
            process.kill()
            process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._context.destroy(linger=0)
        self._folder.cleanup()

    def _forget(self, request_id: int) -> bool:
        if self._generations.pop(request_id, None) is None:
            return False
        self._send(Cancel([request_id]))
        return True

    def _send(self, message: ToEngine) -> None:
        # No high-water mark and a local peer: queues the message and returns.
        self._socket.send(self._encoder.encode(message))

    async def _receive(self) -> None:
        decoder = msgspec.msgpack.Decoder(FromEngine)
        while self.error is None:
            message = decoder.decode(await self._socket.recv())
            if isinstance(message, Iteration):
                self._deliver(message)
            elif isinstance(message, Progress):
                self._report(message.message)
            elif isinstance(message, Ready):
                self.info = message.info
                self._loaded.set()
            elif isinstance(message, Failed):
                self.bad_input = message.bad_input
                self._die(message.message)

    def _deliver(self, iteration: Iteration) -> None:
        now = time.monotonic()
        self.stats = iteration.stats
        for output in iteration.outputs:
            generation = self._generations.get(output.id)
            if generation is None:
                continue  # cancelled while this was under way
            generation.put(output, now)
            if output.finish_reason is not None:
                del self._generations[output.id]
        for refusal in iteration.refusals:
            generation = self._generations.pop(refusal.id, None)
            if generation is not None:
                generation.fail(refusal.message)

    async def _watch(self) -> None:
        """Notice a process that ended without a word."""
        assert self._process is not None
        while (code := self._process.poll()) is None:
            await asyncio.sleep(_LIVENESS_SECONDS)
        await asyncio.sleep(_LIVENESS_SECONDS)  # its last words may be under way
        self._die(f"the engine process ended with exit status {code}")

    def _die(self, message: str) -> None:
        if self.error is not None:
            return
        self.error = message
        self._loaded.set()
        generations, self._generations = self._generations, {}
        for generation in generations.values():
            generation.fail(message)
