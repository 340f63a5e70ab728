"""Scripted engine processes at the other end of real sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import zmq

from sarathi.engine.config import EngineConfig, Launch
from sarathi.engine.messages import (
    Cancel,
    EngineFailed,
    FromEngine,
    Iteration,
    ModelInfo,
    Ready,
    Refusal,
    Shutdown,
    Submit,
    ToEngine,
    TokenOutput,
)
from sarathi.fleet.engine_client import Generation
from sarathi.fleet.fleet import Fleet, RestartPolicy
from sarathi.sampling.logprobs import TokenLogprobs
from sarathi.sampling.params import SamplingParams
from sarathi.scheduler.request import FinishReason
from sarathi.telemetry.stats import Stats
from tests.model_info import model_info

INFO = model_info(max_model_len=1000, vocab_size=100_000, num_blocks=500)
LATENCY = (0.001, 0.001, 0.0, 0.0, 0.001)
STATS = Stats(1, 2, 30, 10, 50, 3, 40, 200, 50, 4, 0.02, 0.08, [1.0], [0.5])
FAST = RestartPolicy(max_failed_starts=5, initial_delay=0.001, max_delay=0.001)
_TIMEOUT = 20.0  # seconds; machines may be busy

Result = TypeVar("Result")


class ScriptedEngine:
    """Each token follows from its request and position, whichever engine computes it."""

    def __init__(self, endpoint: str, launch: Launch) -> None:
        self.launch = launch
        self.requests: dict[int, Submit] = {}
        self.submitted: list[Submit] = []
        self.cancelled: list[int] = []
        self.was_shut_down = False
        self.is_ready = False
        self._how: str | None = None
        self._given: dict[int, int] = {}
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.connect(endpoint)

    # -- as a process -----------------------------------------------------------------------

    def ended(self) -> str | None:
        self.listen()
        return self._how

    def kill(self) -> None:
        self.die("killed")

    # -- calls of the tests -------------------------------------------------------------------

    def ready(self, info: ModelInfo = INFO) -> None:
        self.is_ready = True
        self.send(Ready(info, LATENCY))

    def die(self, how: str = "exit status 9") -> None:
        if self._how is None:
            self._how = how
            self._context.destroy(linger=200)

    def fail(self, message: str, *, bad_input: bool = False) -> None:
        self.send(EngineFailed(message, bad_input))
        self.die("exit status 2")

    def step(self, stats: Stats = STATS) -> None:
        """A token for each request."""
        self.listen()
        outputs = []
        for request in list(self.requests.values()):
            position = self._given[request.id]
            self._given[request.id] += 1
            last = position + 1 == request.params.max_tokens
            reason: FinishReason | None
            reason = "length" if last else None
            outputs.append(TokenOutput(request.id, token(request.prompt_ids, position), reason))
            if last:
                del self.requests[request.id]
        self.send(Iteration(outputs, [], stats))

    def score(self, count: int, reason: FinishReason | None = None) -> None:
        """Log probabilities of `count` tokens of each prompt, or the end of each request."""
        self.listen()
        scores = [TokenLogprobs(-1.0, 1, [], [])] * count
        outputs = [
            TokenOutput(key, finish_reason=reason, prompt_logprobs=scores) for key in self.requests
        ]
        self.send(Iteration(outputs, [], STATS))

    def refuse(self, request_id: int, message: str) -> None:
        del self.requests[request_id]
        self.send(Iteration([], [Refusal(request_id, message)], STATS))

    def listen(self) -> None:
        """Handle the messages that have arrived."""
        while self._how is None:
            try:
                data = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = msgspec.msgpack.decode(data, type=ToEngine)
            if isinstance(message, Submit):
                self.requests[message.id] = message
                self.submitted.append(message)
                self._given[message.id] = len(message.output_ids)
            elif isinstance(message, Cancel):
                self.cancelled += message.ids
                for request_id in message.ids:
                    self.requests.pop(request_id, None)
            elif isinstance(message, Shutdown):
                self.was_shut_down = True
                self.die("exit status 0")

    def send(self, message: FromEngine) -> None:
        if self._how is None:  # a message that was just read may have shut it down
            self._socket.send(msgspec.msgpack.encode(message))


def token(prompt: Sequence[int], position: int) -> int:
    return 1000 * prompt[0] + position


def tokens(first: int, start: int, stop: int) -> list[int]:
    """Those of the request whose prompt begins with `first`, at these positions."""
    return [token([first], position) for position in range(start, stop)]


class ScriptedSpawner:
    def __init__(self, host: str | None = None) -> None:
        self.host = host
        self.engines: list[ScriptedEngine] = []
        self.refusal: Exception | None = None

    def spawn(self, module: str, arguments: Sequence[str]) -> ScriptedEngine:
        assert module == "sarathi.engine.process"
        if self.refusal is not None:
            raise self.refusal
        endpoint, launch = arguments
        self.engines.append(ScriptedEngine(endpoint, msgspec.json.decode(launch, type=Launch)))
        return self.engines[-1]


class World:
    """A fleet and its engines."""

    def __init__(
        self,
        replicas: int = 1,
        *,
        config: EngineConfig | None = None,
        restart_policy: RestartPolicy = FAST,
        host: str | None = None,
        max_replicas: int = 8,
    ) -> None:
        self.spawner = ScriptedSpawner(host)
        self.lines: list[str] = []
        self.fleet = Fleet(
            Path("model"),
            config or EngineConfig(),
            replicas,
            spawner=self.spawner,
            max_replicas=max_replicas,
            log=self.lines.append,
            restart_policy=restart_policy,
        )

    async def engine(self, index: int) -> ScriptedEngine:
        """Wait for the engine that is started as number `index`, from 0."""
        await until(lambda: len(self.spawner.engines) > index)
        return self.spawner.engines[index]

    async def ready(self, *indices: int) -> list[ScriptedEngine]:
        engines = [await self.engine(index) for index in indices]
        for engine in engines:
            count = self.states.count("ready") + 1
            engine.ready()
            await self.until_ready(count)
        return engines

    async def until_ready(self, count: int) -> None:
        await until(lambda: self.states.count("ready") >= count)

    @property
    def states(self) -> list[str]:
        return [replica.state for replica in self.fleet.replicas]

    def submit(self, first: int, max_tokens: int = 5, length: int = 1) -> Generation:
        """A request whose prompt begins with `first`."""
        params = SamplingParams(max_tokens=max_tokens)
        return self.fleet.submit([first] * length, params)


def play(scene: Callable[[World], Awaitable[Result]], replicas: int = 1, **options: Any) -> Result:
    """Run a scene around a fleet that has been started, and end it."""

    async def run() -> Result:
        world = World(replicas, **options)
        world.fleet.start()
        try:
            return await scene(world)
        finally:
            await world.fleet.stop()
            for engine in world.spawner.engines:
                engine.kill()

    return asyncio.run(asyncio.wait_for(run(), 60))


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        await asyncio.sleep(0.001)


async def received(engine: ScriptedEngine, count: int = 1) -> list[Submit]:
    """Wait until an engine has received so many requests, and return them."""

    def enough() -> bool:
        engine.listen()
        return len(engine.submitted) >= count

    await until(enough)
    return engine.submitted


async def read(generation: Generation, count: int | None = None) -> list[int]:
    """Read so many more tokens, or all until the last."""
    tokens: list[int] = []
    while count is None or len(tokens) < count:
        outputs = await asyncio.wait_for(generation.next(), _TIMEOUT)
        tokens += [output.token for output in outputs]
        if outputs[-1].finish_reason is not None:
            break
    return tokens
