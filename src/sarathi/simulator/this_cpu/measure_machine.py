"""Measures a server on this machine under load, by its iteration log."""

from __future__ import annotations

import shlex
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from sarathi.bench.client.open_loop import RunListener
from sarathi.bench.measure import RunOptions, measure, prepare
from sarathi.bench.results import describe_machine, load_iterations
from sarathi.bench.target import Credentials, RunningServer, Target, running_server
from sarathi.bench.workload.token_counter import ServerTokens
from sarathi.bench.workload.workload import Load, Workload
from sarathi.errors import BenchmarkError, SimulationError
from sarathi.simulator.this_cpu.measured_machine import WANTED, MeasuredMachine, fit, num_iterations
from sarathi.system.cpu_contention import cpu_times
from sarathi.telemetry.iteration_log import IterationLine

_BLOCK_SIZE = 32  # tokens, of the executor on processors
# Whole prompts beside chunks, so that iterations of all sizes are seen.
_POLICIES = ("sarathi", "vllm")
_ROUNDS = 4  # of the load at most, where a busy machine computes few iterations in one
_FLUSHING = 1.0  # seconds until an idle server has written its log
_WARM_UP = 2
_TIMEOUT = 120.0  # seconds
_ANY_LAG = 10.0  # seconds; times are the server's own here

Follow = Callable[[str, int], AbstractContextManager[Sequence[RunListener]]]


@dataclass
class MachineMeasurement:
    """A server for each of two policies, loaded to fit a cost to its iterations.

    The client runs on the same machine, as it does when a server is measured there. A load that
    gives too few iterations, as on a busy machine, is repeated; what has been measured is kept,
    whatever happens afterwards.
    """

    model: str  # as `sarathi serve` takes it
    workload: Workload
    rate: float  # requests per second
    seconds: float  # of load, for each policy
    options: str  # further ones of `sarathi serve`
    start_timeout: float  # seconds for a server to load the model
    follow: Follow  # shows a run of so many requests with a title
    api_key: str | None = None  # of the servers, where nothing else gives them one
    # Called with a line about what does not go as planned.
    on_progress: Callable[[str], None] = lambda line: None
    longest: int = field(default=0, init=False)  # tokens, once a server has reported it
    # Processor seconds under load: what other programs had, and what there was.
    others: float = field(default=0.0, init=False)
    available: float = field(default=0.0, init=False)

    def run(self) -> MeasuredMachine:
        """Start the servers one after the other, and load them.

        Raises:
            BenchmarkError: a server cannot be started or measured, and nothing was before.
            SimulationError: too few iterations were measured.
        """
        logs: list[list[IterationLine]] = []
        with tempfile.TemporaryDirectory(prefix="sarathi-") as folder:
            for policy in _POLICIES:
                log = Path(folder) / f"{policy}.jsonl"
                try:
                    self._measure(policy, log)
                except BenchmarkError as error:
                    lines = load_iterations(log) if log.exists() else []
                    if not any(map(num_iterations, [*logs, lines])):
                        raise
                    self.on_progress(f"policy {policy}: {error}; what has been measured is kept")
                if log.exists():
                    logs.append(load_iterations(log))
        noise, fit_error = fit(logs)
        blocks = max((line.free_blocks for log in logs for line in log), default=0)
        if not (blocks and self.longest):
            raise SimulationError("the server does not report the length of its model")
        return MeasuredMachine(
            model=self.model,
            machine=describe_machine(),
            measured=time.strftime("%Y-%m-%d"),
            num_blocks=blocks,
            block_size=_BLOCK_SIZE,
            max_model_len=self.longest,
            noise=noise,
            error=fit_error,
            others=self.others / self.available if self.available > 0 else None,
        )

    def _measure(self, policy: str, log: Path) -> None:
        """Start a server with a policy, and load it until its log is long enough."""
        command = (
            f"sarathi serve {shlex.quote(self.model)} --port {_free_port()} --policy {policy} "
            f"--iteration-log {shlex.quote(str(log))} {self.options}"
        )
        access = Credentials(None, "completions", self.api_key, self.start_timeout)
        printed, wanted = log.with_suffix(".out"), WANTED // len(_POLICIES)
        with running_server(Target(policy, command=command), access, printed) as server:
            self.longest = server.facts.max_model_len or 0
            with closing(ServerTokens(server.endpoint)) as tokens:
                for number in range(1, _ROUNDS + 1):
                    self._send(server, tokens, policy, number)
                    time.sleep(_FLUSHING)
                    found = num_iterations(load_iterations(log))
                    if found >= wanted:
                        break
                    then = "the load is sent again" if number < _ROUNDS else "that must be enough"
                    self.on_progress(
                        f"policy {policy}: {found} iterations by now, {wanted} are wanted: {then}"
                    )

    def _send(self, server: RunningServer, tokens: ServerTokens, policy: str, number: int) -> None:
        count, seed = max(1, round(self.rate * self.seconds)), number - 1
        # Prompts of every round are different, or they would be in the prefix cache.
        load = Load(self.workload, count, _WARM_UP, seed, f"{policy}/{seed}")
        requests = prepare(load, self.rate, tokens, server.facts.max_model_len)
        again = f", round {number}" if number > 1 else ""
        title = f"{self.model}, policy {policy}{again}"
        with self.follow(title, len(requests.calls)) as listener, self._counting_others():
            measure(server, requests, RunOptions(_TIMEOUT, _ANY_LAG), listener)

    @contextmanager
    def _counting_others(self) -> Iterator[None]:
        before, own = cpu_times(), _own_seconds()
        try:
            yield
        finally:
            after = cpu_times()
            used = after.busy - before.busy - (_own_seconds() - own)
            self.others += max(0.0, used)
            self.available += (after.clock - before.clock) * after.processors


def _own_seconds() -> float:
    """Return the processor time of this process and those it has started."""
    total = 0.0
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        with suppress(psutil.Error):  # it has just ended
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
