"""The client of one engine process: starts it, sends requests and receives their tokens.

A `Generation` is a submitted request and the stream of its tokens, as the server sees it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from sarathi.engine import messages
from sarathi.engine.config import EngineConfig, Launch
from sarathi.engine.messages import EngineListener, ModelInfo, TokenOutput
from sarathi.errors import ConfigError, ExecutorError
from sarathi.sampling.params import SamplingParams
from sarathi.sampling.sampler import NO_TOKEN
from sarathi.scheduler import SchedulingParams
from sarathi.system.processes import LOCAL, Process, Spawner
from sarathi.telemetry.request_latencies import Outcome, Stopwatch
from sarathi.telemetry.stats import Stats

_SHUTDOWN_SECONDS = 5.0
_LIVENESS_SECONDS = 0.2
_CLOCK_READINGS = 32  # that are kept: so few that the clocks have not drifted meanwhile


class EngineError(RuntimeError):
    """The engine cannot answer: it is still loading, has died, or refused the request."""


class ShuttingDownError(EngineError):
    """The server shuts down before the request has ended."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class RequestLostError(EngineError):
    """The engine died too often while it was computing the request."""


class Generation:
    """A request and its tokens, as they come.

    It outlives the engine that computes it, and holds what another engine needs to continue.
    """

    def __init__(
        self,
        request_id: int,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        scheduling_params: SchedulingParams,
        stopwatch: Stopwatch,
        on_cancel: Callable[[Generation], None],
    ) -> None:
        """Prepare the stream; `Fleet.submit` is what creates one.

        Args:
            request_id: unique among the requests of all engines.
            on_cancel: called once if the caller ends the request before the engine does.
        """
        self.id = request_id
        self.prompt_ids = prompt_ids
        self.params = params
        self.scheduling_params = scheduling_params
        self.output_ids: list[int] = []  # received so far, read or not
        self.num_scored = 0  # log probabilities of the prompt, likewise
        self.has_first_token = False  # whether its present engine has generated a token
        self.deaths = 0  # of engines that were computing it
        self._stopwatch = stopwatch
        self._on_cancel = on_cancel
        self.ended = False  # no more tokens will come
        self._outputs: list[TokenOutput] = []
        self._error: EngineError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def arrival(self) -> float:
        """When it was submitted; seconds, time.monotonic of this process."""
        return self._stopwatch.arrival

    @property
    def num_tokens(self) -> int:
        """Tokens that an engine has to compute before it can generate the next one."""
        return len(self.prompt_ids) + len(self.output_ids)

    async def next(self) -> list[TokenOutput]:
        """Wait for tokens and return those since the last call; the last one has a finish reason.

        `EngineError` if the engine rejected the request, or has died and is not restarted.
        """
        if not self._outputs and self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if not self._outputs:
            assert self._error is not None
            raise self._error
        outputs, self._outputs = self._outputs, []
        return outputs

    def cancel(self) -> None:
        """Stop computing and free the KV blocks. Does nothing after the end."""
        self._end_early("cancelled")

    def stop(self) -> None:
        """Do the same as `cancel`, for an answer that a stop string has completed."""
        self._end_early("stop")

    def put(self, output: TokenOutput, now: float) -> None:
        """Add a token that was received `now`, by time.monotonic."""
        if output.prompt_logprobs is not None:
            self.num_scored += len(output.prompt_logprobs)
        if output.token != NO_TOKEN:
            self._stopwatch.token(now, output.scheduling_delay)
            self.output_ids.append(output.token)
        if output.finish_reason is not None:
            self.ended = True
            self._stopwatch.end(output.finish_reason)
        self._outputs.append(output)
        self._wake()

    def fail(self, error: EngineError) -> None:
        """End the request with an error, which `next` raises after the tokens received."""
        self.ended = True
        self._stopwatch.end("failed")
        self._error = error
        self._wake()

    def _end_early(self, outcome: Outcome) -> None:
        if not self.ended:
            self.ended = True
            self._on_cancel(self)
            self._stopwatch.end(outcome)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EngineCallbacks(Protocol):
    """Receives the progress of requests."""

    def on_first_token(self, generation: Generation) -> None:
        """Handle the first token of a request from this engine."""

    def on_finished(self, generation: Generation) -> None:
        """Handle the end of a request: its last token, or its rejection."""


class ClockOffset:
    """How far another machine's clock is ahead of ours, from messages with its time.

    A message takes time, by which the difference appears too small. So the largest difference of
    the latest messages is the most accurate.
    """

    def __init__(self) -> None:
        self._differences: deque[float] = deque(maxlen=_CLOCK_READINGS)

    def add(self, theirs: float, ours: float) -> None:
        """Add a message that they sent, and we received, at these seconds of our clocks."""
        self._differences.append(theirs - ours)

    @property
    def seconds(self) -> float:
        """To be added to a time of ours; 0 without messages, as if the clock were the same."""
        return max(self._differences, default=0.0)


class EngineClient:
    """Starts one engine process and talks to it. Belongs to one event loop.

    When the process dies, its requests stay with the client until `take_open`.
    """

    def __init__(
        self,
        path: Path,
        config: EngineConfig,
        callbacks: EngineCallbacks,
        *,
        spawner: Spawner = LOCAL,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Prepare a client; `start` starts the process.

        Args:
            path: the model, as `open_model` takes it.
            log: called with a line about what the engine does.
        """
        self.info: ModelInfo | None = None  # None until the model is loaded
        self.latency: tuple[float, ...] = ()  # coefficients of a `LatencyModel`; with info
        self.error: str | None = None  # why the engine has died
        self.stats: Stats | None = None  # after the latest iteration
        self.bad_input = False  # the model or an option is the cause of the error
        self._path = path
        self._config = config
        self._callbacks = callbacks
        self._spawner = spawner
        self._log = log
        self._open: dict[int, Generation] = {}
        self._offset = ClockOffset()
        self._encoder = msgspec.msgpack.Encoder()
        self._loaded = asyncio.Event()
        self._dead = asyncio.Event()
        self._process: Process | None = None
        self._listener: EngineListener | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the process and return at once; `loaded` waits for it."""
        local = self._spawner.host is None
        launch = Launch(str(self._path), self._config, os.getpid() if local else None)
        try:
            self._listener = EngineListener(self._spawner.host)
            arguments = [self._listener.endpoint, msgspec.json.encode(launch).decode()]
            self._process = self._spawner.spawn("sarathi.engine.process", arguments)
        except (ConfigError, ExecutorError) as error:
            self.bad_input = True
            self._die(str(error))
        except OSError as error:  # ZeroMQ's are among them
            self._die(f"the engine process cannot be started: {error}")
        else:
            loops = (self._receive(), self._watch_process(), self._watch_connection())
            self._tasks = [asyncio.create_task(loop) for loop in loops]

    async def loaded(self) -> ModelInfo:
        """Wait until the model is loaded; `EngineError` if it cannot be loaded."""
        await self._loaded.wait()
        if self.info is None or self.error is not None:
            raise EngineError(self.error)
        return self.info

    async def died(self) -> str:
        """Wait until the engine has died, and return why."""
        await self._dead.wait()
        return self.error or "the engine has stopped"

    @property
    def num_open(self) -> int:
        """Requests of this engine that have not ended."""
        return len(self._open)

    def submit(self, generation: Generation) -> None:
        """Send a request, which may have tokens already. The engine must be ready."""
        self._open[generation.id] = generation
        generation.has_first_token = False
        self._send(
            messages.Submit(
                generation.id,
                list(generation.prompt_ids),
                generation.params,
                generation.arrival + self._offset.seconds,
                generation.scheduling_params,
                list(generation.output_ids),
                generation.num_scored,
            )
        )

    def cancel(self, generation: Generation) -> None:
        """Cancel a request; does nothing if it has ended."""
        if self._open.pop(generation.id, None) is not None and self.error is None:
            self._send(messages.Cancel([generation.id]))

    def take_open(self) -> list[Generation]:
        """Remove and return the open requests, in the order in which they were submitted.

        An engine that is alive cancels them. Tokens in flight are dropped: the engine that computes
        the requests next generates them again.
        """
        taken, self._open = list(self._open.values()), {}
        if taken and self.error is None:
            self._send(messages.Cancel([generation.id for generation in taken]))
        return taken

    async def stop(self) -> None:
        """End the process. Nothing may be sent afterwards."""
        process = self._process
        if process is not None:
            if self.info is None or self.error is not None:
                process.kill()  # it reads no messages while it loads, and nothing is lost
            else:
                self._send(messages.Shutdown())
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

    def _send(self, message: messages.ToEngine) -> None:
        assert self._listener is not None
        self._listener.send(self._encoder.encode(message))

    async def _receive(self) -> None:
        assert self._listener is not None
        decoder = msgspec.msgpack.Decoder(messages.FromEngine)
        while self.error is None:
            try:
                message = decoder.decode(await self._listener.receive())
            except msgspec.MsgspecError as error:
                self._die(f"the engine process sent a message that cannot be read: {error}")
                return
            if isinstance(message, messages.Iteration):
                self._deliver(message)
            elif isinstance(message, messages.ClockReading):
                self._offset.add(message.now, time.monotonic())
            elif isinstance(message, messages.LoadProgress):
                self._log(message.message)
            elif isinstance(message, messages.Ready):
                self.info, self.latency = message.info, message.latency
                self._loaded.set()
            elif isinstance(message, messages.EngineFailed):
                self.bad_input = message.bad_input
                self._die(message.message)

    def _deliver(self, iteration: messages.Iteration) -> None:
        now = time.monotonic()
        self.stats = iteration.stats
        for output in iteration.outputs:
            generation = self._open.get(output.id)
            if generation is None:
                continue  # cancelled meanwhile
            generation.put(output, now)
            if not generation.has_first_token and (
                output.token != NO_TOKEN or output.finish_reason is not None
            ):
                generation.has_first_token = True
                self._callbacks.on_first_token(generation)
            if output.finish_reason is not None:
                del self._open[output.id]
                self._callbacks.on_finished(generation)
        for refusal in iteration.refusals:
            generation = self._open.pop(refusal.id, None)
            if generation is not None:
                generation.fail(EngineError(refusal.message))
                self._callbacks.on_finished(generation)

    async def _watch_process(self) -> None:
        """Detect a process that has ended without a message."""
        assert self._process is not None
        while (how := self._process.ended()) is None:
            await asyncio.sleep(_LIVENESS_SECONDS)
        await asyncio.sleep(_LIVENESS_SECONDS)  # its last message may be in flight
        self._die(f"the engine process has ended: {how}")

    async def _watch_connection(self) -> None:
        """Detect a machine that cannot be reached any more."""
        assert self._listener is not None
        await self._listener.lost()
        await asyncio.sleep(_LIVENESS_SECONDS)
        self._die("the connection to the engine process was lost")

    def _die(self, message: str) -> None:
        if self.error is None:
            self.error = message
            self._loaded.set()
            self._dead.set()
