"""The HTTP process's end of the connection to one engine process, from its start to its end."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from sarathi.engine.config import EngineConfig, Launch
from sarathi.engine.connection import Listener
from sarathi.engine.messages import (
    Cancel,
    ClockReading,
    EngineFailed,
    FromEngine,
    Iteration,
    LoadProgress,
    ModelInfo,
    Ready,
    Shutdown,
    Submit,
    ToEngine,
)
from sarathi.errors import ConfigError, ExecutorError
from sarathi.fleet.clock_offset import ClockOffset
from sarathi.fleet.generation import EngineError, Generation
from sarathi.system.processes import LOCAL, Process, Spawner
from sarathi.telemetry.stats import Stats

_SHUTDOWN_SECONDS = 5.0
_LIVENESS_SECONDS = 0.2


class EngineCallbacks(Protocol):
    """Is told how far requests have got."""

    def started(self, generation: Generation) -> None:
        """Its first token from this engine has come."""

    def finished(self, generation: Generation) -> None:
        """The engine has ended it: with its last token, or by refusing it."""


class EngineClient:
    """Starts one engine process and talks to it. Belongs to one event loop.

    When the process dies, the requests that it had stay with the client until somebody takes them.
    """

    def __init__(
        self,
        path: Path,
        config: EngineConfig,
        watcher: EngineCallbacks,
        *,
        spawner: Spawner = LOCAL,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Nothing is started yet.

        Args:
            path: the model, as `open_model` takes it.
            spawner: starts the process.
            report: called with a line about what the engine does.
        """
        self.info: ModelInfo | None = None  # None until the model is loaded
        self.latency: tuple[float, ...] = ()  # coefficients of a `LatencyModel`; with info
        self.error: str | None = None  # why the engine cannot answer any more
        self.stats: Stats | None = None  # after the latest iteration
        self.bad_input = False  # the model or an option is to blame for the error
        self._path = path
        self._config = config
        self._watcher = watcher
        self._spawner = spawner
        self._report = report
        self._open: dict[int, Generation] = {}
        self._offset = ClockOffset()
        self._encoder = msgspec.msgpack.Encoder()
        self._loaded = asyncio.Event()
        self._dead = asyncio.Event()
        self._process: Process | None = None
        self._listener: Listener | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the process and return at once; `loaded` waits for it."""
        local = self._spawner.host is None
        launch = Launch(str(self._path), self._config, os.getpid() if local else None)
        try:
            self._listener = Listener(self._spawner.host)
            arguments = [self._listener.endpoint, msgspec.json.encode(launch).decode()]
            self._process = self._spawner.spawn("sarathi.engine.process", arguments)
        except (ConfigError, ExecutorError) as error:
            self.bad_input = True
            self._die(str(error))
        except OSError as error:  # ZeroMQ's are among them
            self._die(f"the engine process cannot be started: {error}")
        else:
            work = (self._receive(), self._watch(), self._watch_connection())
            self._tasks = [asyncio.create_task(one) for one in work]

    async def loaded(self) -> ModelInfo:
        """Wait until the model can answer.

        Raises:
            EngineError: it could not be loaded.
        """
        await self._loaded.wait()
        if self.info is None or self.error is not None:
            raise EngineError(self.error)
        return self.info

    async def died(self) -> str:
        """Wait until the engine has died, and say why."""
        await self._dead.wait()
        return self.error or "the engine has stopped"

    @property
    def num_open(self) -> int:
        """Requests that it has and that have not ended."""
        return len(self._open)

    def submit(self, generation: Generation) -> None:
        """Queue a request, which may have tokens already. The engine must be ready."""
        self._open[generation.id] = generation
        generation.begun = False
        self._send(
            Submit(
                generation.id,
                list(generation.prompt_ids),
                generation.params,
                generation.arrival + self._offset.seconds,
                generation.terms,
                list(generation.output_ids),
            )
        )

    def cancel(self, generation: Generation) -> None:
        """Forget a request and have the engine forget it; harmless where it has ended."""
        if self._open.pop(generation.id, None) is not None and self.error is None:
            self._send(Cancel([generation.id]))

    def take_open(self) -> list[Generation]:
        """Hand over the requests that it has, in the order in which they came.

        An engine that lives is told to forget them. Tokens under way are dropped: whoever computes
        the requests next gives them again.
        """
        taken, self._open = list(self._open.values()), {}
        if taken and self.error is None:
            self._send(Cancel([generation.id for generation in taken]))
        return taken

    async def stop(self) -> None:
        """End the process. Nothing may be sent afterwards."""
        process = self._process
        if process is not None:
            if self.info is None or self.error is not None:
                process.kill()  # deaf while it loads, and nothing is lost
            else:
                self._send(Shutdown())
            self._die("the server is shutting down")
            for _ in range(int(_SHUTDOWN_SECONDS / 0.05)):
                if process.ended() is not None:
                    break
                await asyncio.sleep(0.05)
            process.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()

    def _send(self, message: ToEngine) -> None:
        assert self._listener is not None
        self._listener.send(self._encoder.encode(message))

    async def _receive(self) -> None:
        assert self._listener is not None
        decoder = msgspec.msgpack.Decoder(FromEngine)
        while self.error is None:
            try:
                message = decoder.decode(await self._listener.receive())
            except msgspec.MsgspecError as error:
                self._die(f"the engine process sent what cannot be read: {error}")
                return
            if isinstance(message, Iteration):
                self._deliver(message)
            elif isinstance(message, ClockReading):
                self._offset.tell(message.now, time.monotonic())
            elif isinstance(message, LoadProgress):
                self._report(message.message)
            elif isinstance(message, Ready):
                self.info, self.latency = message.info, message.latency
                self._loaded.set()
            elif isinstance(message, EngineFailed):
                self.bad_input = message.bad_input
                self._die(message.message)

    def _deliver(self, iteration: Iteration) -> None:
        now = time.monotonic()
        self.stats = iteration.stats
        for output in iteration.outputs:
            generation = self._open.get(output.id)
            if generation is None:
                continue  # cancelled while this was under way
            generation.put(output, now)
            if not generation.begun:
                generation.begun = True
                self._watcher.started(generation)
            if output.finish_reason is not None:
                del self._open[output.id]
                self._watcher.finished(generation)
        for refusal in iteration.refusals:
            generation = self._open.pop(refusal.id, None)
            if generation is not None:
                generation.fail(EngineError(refusal.message))
                self._watcher.finished(generation)

    async def _watch(self) -> None:
        """Notice a process that ended without a word."""
        assert self._process is not None
        while (how := self._process.ended()) is None:
            await asyncio.sleep(_LIVENESS_SECONDS)
        await asyncio.sleep(_LIVENESS_SECONDS)  # its last words may be under way
        self._die(f"the engine process has ended: {how}")

    async def _watch_connection(self) -> None:
        """Notice a machine that cannot be reached any more."""
        assert self._listener is not None
        await self._listener.lost()
        await asyncio.sleep(_LIVENESS_SECONDS)
        self._die("the connection to the engine process was lost")

    def _die(self, message: str) -> None:
        if self.error is None:
            self.error = message
            self._loaded.set()
            self._dead.set()
