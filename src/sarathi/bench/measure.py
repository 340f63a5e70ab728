"""One run: planned requests, sent to a server and timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import uvloop

from sarathi.bench.client.endpoint import Call
from sarathi.bench.client.open_loop import Played, RunListener, play
from sarathi.bench.results import Run, describe_machine
from sarathi.bench.target import RunningServer
from sarathi.bench.workload.prompt_text import write_prompts
from sarathi.bench.workload.token_counter import TokenCounter
from sarathi.bench.workload.workload import Load, Plan
from sarathi.errors import BenchmarkError
from sarathi.telemetry import Targets, summarise


@dataclass(frozen=True)
class Requests:
    """A load at a rate, ready to be sent to one or several servers."""

    load: Load
    rate: float | None
    plan: Plan
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class RunOptions:
    """When requests have failed and runs are invalid."""

    timeout: float  # seconds without an event after which a request has failed
    max_lag: float  # seconds; of the client at P99, above which a run is invalid
    targets: Targets | None = None  # for goodput


def prepare(
    load: Load, rate: float | None, tokens: TokenCounter, max_model_len: int | None
) -> Requests:
    """Sample lengths and times, and write the prompts.

    Raises:
        BenchmarkError: the workload does not fit the rate or the file.
    """
    plan = load.plan(rate, max_model_len)
    requests = plan.requests
    prompts = write_prompts(requests, tokens, load.salt, load.seed)
    calls = tuple(
        Call(planned.at, prompt, planned.prompt_tokens, planned.output_tokens)
        for planned, prompt in zip(requests, prompts, strict=True)
    )
    return Requests(load, rate, plan, calls)


def measure(
    server: RunningServer,
    requests: Requests,
    options: RunOptions,
    listeners: Sequence[RunListener] = (),
) -> Run:
    """Send all requests. Where the server is gone at the end, the run is kept, but invalid.

    Raises:
        BenchmarkError: the server is gone before the start, or nothing was measured.
    """
    server.check()
    endpoint, dialect, calls = server.endpoint, server.facts.dialect, requests.calls
    played = uvloop.run(
        play(endpoint, dialect, calls, timeout=options.timeout, listeners=listeners)
    )
    gone = None
    try:
        server.check()
    except BenchmarkError as error:
        gone = str(error)
    load, plan = requests.load, requests.plan
    records = [
        record
        for index, record in zip(played.indices, played.records, strict=True)
        if index >= plan.num_warm_up
    ]
    if not records:
        raise BenchmarkError(gone or f"nothing was measured: {played.stopped}")
    return Run(
        label=server.label,
        server=server.server,
        model=server.facts.model,
        workload=load.workload.describe(),
        machine=describe_machine(),
        began=played.began,
        rate=requests.rate,
        seed=load.seed,
        salt=load.salt,
        num_shortened=plan.num_shortened,
        records=records,
        summary=summarise(
            records, options.targets, None if played.stopped else plan.measured_seconds
        ),
        lag=played.lag,
        targets=options.targets,
        invalid=gone or _invalid(played, options.max_lag),
        stopped=played.stopped,
    )


def _invalid(played: Played, max_lag: float) -> str | None:
    for record in played.records:
        if record.failure == "client":
            return f"the client itself could not send a request: {record.detail}"
    if played.lag.p99 <= max_lag:
        return None
    return (
        f"the client itself was {1000 * played.lag.p99:.0f} ms late at P99, more than the "
        f"{1000 * max_lag:.0f} ms that are accepted: run it where it has a processor of its own"
    )
