"""The messages of the engine process to the server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import zmq

from sarathi.engine import process
from sarathi.engine.core import StepOutcome
from sarathi.engine.messages import FromEngine, Iteration, Shutdown, TokenOutput
from sarathi.engine.process import EngineProcess, progress_line
from sarathi.telemetry.stats import Stats


class LongPrompt:
    """A core whose iterations take a quarter of a second; only the last one gives a token."""

    def __init__(self, num_iterations: int) -> None:
        self.now = 0.0
        self._done = 0
        self._total = num_iterations

    @property
    def has_work(self) -> bool:
        return self._done < self._total

    def step(self) -> StepOutcome:
        self.now += 0.25
        self._done += 1
        return StepOutcome([] if self.has_work else [TokenOutput(0, 1)], [])

    def check(self) -> None:
        pass

    @property
    def stats(self) -> Stats:
        return Stats(1, 0, 1, 0, 1, 0, self._done, 0, 0, 0, 0.0, 0.0)


class Server:
    """The other end of the socket: silent while there is work, then it ends the process."""

    def __init__(self) -> None:
        self.received: list[Iteration] = []
        self._sends: list[bytes] = []

    def poll(self, timeout: int) -> bool:
        if timeout:
            self._sends.append(msgspec.msgpack.encode(Shutdown()))
        return bool(self._sends)

    def recv(self, flags: int) -> bytes:
        if not self._sends:
            raise zmq.Again
        return self._sends.pop()

    def send(self, message: bytes) -> None:
        self.received.append(msgspec.msgpack.decode(message, type=FromEngine))


def test_statistics_come_every_second_while_there_is_no_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core, server = LongPrompt(num_iterations=10), Server()
    monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=lambda: core.now))
    socket: Any = server
    engine: Any = core
    EngineProcess(socket).run(engine)
    *during, last, _ = server.received  # one more answers the message that ends it
    assert [message.stats.iterations for message in during] == [4, 8]
    assert [message.outputs for message in during] == [[], []]
    assert last == Iteration([TokenOutput(0, 1)], [], core.stats)


def test_the_log_line_about_the_load() -> None:
    stats = Stats(3, 12, 50, 10, 100, 0, 1000, 4000, 1000, 0, 0.031, 0.118)
    assert progress_line(stats) == (
        "3 running, 12 waiting; predicted iteration times are off by 3.1 % (median) and 11.8 % "
        "(P90); 25 % of prompt tokens came from the prefix cache"
    )


def test_before_the_first_prompt() -> None:
    assert "0 % of prompt tokens" in progress_line(Stats(0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0.0, 0.0))
