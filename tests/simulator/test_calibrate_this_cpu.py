"""Measuring this machine: servers that compute few iterations, or fail."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from sarathi.bench.client.open_loop import RunListener
from sarathi.bench.target import Credentials, Target
from sarathi.bench.workload.workload import Workload
from sarathi.errors import BenchmarkError, SimulationError
from sarathi.simulator.this_cpu import measure_machine as module
from sarathi.simulator.this_cpu.measure_machine import MachineMeasurement
from sarathi.simulator.this_cpu.measured_machine import MeasuredMachine
from tests.simulator.test_this_cpu import log

WORKLOAD = Workload.from_options(prompt_lengths="fixed:100", output_lengths="fixed:10")


class Servers:
    """Write so many iterations in each round, or fail."""

    def __init__(self) -> None:
        self.rounds: dict[str, list[int | str]] = {}  # by policy; a text is an error
        self.sent: list[tuple[str, str]] = []  # policies and salts
        self.messages: list[str] = []
        self._log = Path()
        self._policy = ""

    @contextmanager
    def answering(
        self, target: Target, access: Credentials, printed: Path
    ) -> Iterator[SimpleNamespace]:
        assert target.command is not None
        found = re.search(r"--policy (\S+) --iteration-log (\S+)", target.command)
        assert found is not None
        self._policy, self._log = found[1], Path(found[2])
        if not self.rounds[self._policy]:
            raise BenchmarkError("it does not start")
        self._log.write_bytes(b"")
        yield SimpleNamespace(endpoint=None, facts=SimpleNamespace(max_model_len=1000))

    def measure(self, subject: object, requests: SimpleNamespace, *rest: object) -> None:
        self.sent.append((self._policy, requests.load.salt))
        rounds = self.rounds[self._policy]
        done = rounds.pop(0) if len(rounds) > 1 else rounds[0]
        if isinstance(done, str):
            raise BenchmarkError(done)
        with self._log.open("ab") as file:
            for line in log(len(self.sent), done):
                file.write(msgspec.json.encode(line) + b"\n")

    def run(self) -> MeasuredMachine:
        def follow(title: str, count: int) -> AbstractContextManager[Sequence[RunListener]]:
            return nullcontext(())

        return MachineMeasurement(
            "a/model",
            WORKLOAD,
            rate=1,
            seconds=10,
            options="",
            start_timeout=1,
            follow=follow,
            on_progress=self.messages.append,
        ).run()


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    found = Servers()
    tokens: Callable[[object], SimpleNamespace] = lambda endpoint: SimpleNamespace(  # noqa: E731
        close=lambda: None
    )
    monkeypatch.setattr(module, "running_server", found.answering)
    monkeypatch.setattr(module, "measure", found.measure)
    monkeypatch.setattr(module, "ServerTokens", tokens)
    monkeypatch.setattr(module, "prepare", lambda load, *rest: SimpleNamespace(load=load, calls=()))
    monkeypatch.setattr(module, "_FLUSHING", 0.0)
    return found


def test_a_machine_that_gets_enough_done_is_measured_once(servers: Servers) -> None:
    servers.rounds = {"sarathi": [150], "vllm": [120]}
    machine = servers.run()
    assert [policy for policy, _ in servers.sent] == ["sarathi", "vllm"]
    assert machine.error.count == 270
    assert servers.messages == []
    assert machine.max_model_len == 1000
    assert machine.others is None or machine.others >= 0


def test_a_busy_machine_is_sent_more_with_other_texts(servers: Servers) -> None:
    servers.rounds = {"sarathi": [94], "vllm": [60, 50]}
    machine = servers.run()
    assert [policy for policy, _ in servers.sent] == ["sarathi", "sarathi", "vllm", "vllm"]
    assert len({salt for _, salt in servers.sent}) == 4
    assert machine.error.count == 2 * 94 + 110
    assert servers.messages == [
        "policy sarathi: 94 iterations by now, 100 are wanted: the load is sent again",
        "policy vllm: 60 iterations by now, 100 are wanted: the load is sent again",
    ]


def test_what_there_is_after_some_rounds_is_kept(servers: Servers) -> None:
    servers.rounds = {"sarathi": [10], "vllm": [12]}
    machine = servers.run()
    assert machine.error.count == 4 * 10 + 4 * 12
    assert len(servers.sent) == 8
    assert servers.messages[-1] == (
        "policy vllm: 48 iterations by now, 100 are wanted: that must be enough"
    )


def test_too_few_iterations_are_an_error_with_their_number(servers: Servers) -> None:
    servers.rounds = {"sarathi": [5], "vllm": [1]}
    with pytest.raises(SimulationError, match="20 and 4 iterations were measured"):
        servers.run()


@pytest.mark.parametrize("rounds", [[], ["it died"], [70, "it died"]])
def test_a_second_server_that_fails_does_not_undo_the_first(
    rounds: list[int | str], servers: Servers
) -> None:
    servers.rounds = {"sarathi": [150], "vllm": rounds}
    count = sum(one for one in rounds if isinstance(one, int))
    assert servers.run().error.count == 150 + count
    assert servers.messages[-1].endswith("what has been measured is kept")


def test_a_first_server_that_never_answers_is_an_error_at_once(servers: Servers) -> None:
    servers.rounds = {"sarathi": [], "vllm": [150]}
    with pytest.raises(BenchmarkError, match="it does not start"):
        servers.run()
    assert servers.sent == []
