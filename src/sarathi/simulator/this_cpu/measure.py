"""A server of this machine under load, with its iteration log."""

from __future__ import annotations

import shlex
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from sarathi.benchmark.client.watch import Watch
from sarathi.benchmark.contender import Access, Contender, answering
from sarathi.benchmark.files import load_iterations
from sarathi.benchmark.machine import describe_machine
from sarathi.benchmark.measure import Load, Terms, measure, prepare
from sarathi.benchmark.workload.plan import Workload
from sarathi.benchmark.workload.tokens import ServerTokens
from sarathi.engine.iteration_log import Line
from sarathi.simulator.errors import SimulationError
from sarathi.simulator.this_cpu.fit import fit
from sarathi.simulator.this_cpu.machine_file import MeasuredMachine

_BLOCK_SIZE = 32  # tokens, of the executor on processors
# Whole prompts beside chunks, so that iterations of all sizes are seen.
_POLICIES = ("sarathi", "vllm")
_WARM_UP = 2
_TIMEOUT = 120.0  # seconds
_ANY_LAG = 10.0  # seconds; times are the server's own here

Follow = Callable[[str, int], AbstractContextManager[Watch]]


def measure_machine(
    model: str,
    workload: Workload,
    *,
    rate: float,
    seconds: float,
    options: str,
    patience: float,
    follow: Follow,
) -> MeasuredMachine:
    """Start a server for each of two policies, load it, and fit a cost to its iterations.

    The client runs on the same machine, as it does when a server is measured there.

    Args:
        model: as `sarathi serve` takes it.
        rate: requests per second.
        seconds: of load, for each policy.
        options: further ones of `sarathi serve`.
        patience: seconds for a server to load the model.
        follow: shows a run of so many requests with a title.

    Raises:
        BenchmarkError: a server cannot be started or measured.
        SimulationError: too little came of it.
    """
    logs: list[list[Line]] = []
    longest = 0
    number = max(1, round(rate * seconds))
    with tempfile.TemporaryDirectory(prefix="sarathi-") as folder:
        for policy in _POLICIES:
            log = Path(folder) / f"{policy}.jsonl"
            port = _free_port()
            command = (
                f"sarathi serve {shlex.quote(model)} --port {port} --policy {policy} "
                f"--iteration-log {shlex.quote(str(log))} {options}"
            )
            contender = Contender(policy, command=command)
            access = Access(None, "completions", None, patience)
            printed = Path(folder) / f"{policy}.out"
            with answering(contender, access, printed) as subject:
                tokens = ServerTokens(subject.endpoint)
                try:
                    load = Load(workload, number, _WARM_UP, 0, policy)
                    facts = subject.facts
                    requests = prepare(load, rate, tokens, facts.max_model_len)
                    with follow(f"{model}, policy {policy}", len(requests.calls)) as watch:
                        measure(subject, requests, Terms(_TIMEOUT, _ANY_LAG), watch)
                finally:
                    tokens.close()
                longest = facts.max_model_len or 0
            logs.append(load_iterations(log))
    noise, error = fit(logs)
    blocks = max((line.free_blocks for log in logs for line in log), default=0)
    if not (blocks and longest):
        raise SimulationError("the server does not tell the length of its model")
    return MeasuredMachine(
        model=model,
        machine=describe_machine(),
        measured=time.strftime("%Y-%m-%d"),
        num_blocks=blocks,
        block_size=_BLOCK_SIZE,
        max_model_len=longest,
        noise=noise,
        error=error,
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
