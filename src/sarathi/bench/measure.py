"""One run: a plan of requests, sent to whoever is to be measured."""

from __future__ import annotations

from dataclasses import dataclass

import uvloop

from sarathi.bench.client.open_loop import Played, play
from sarathi.bench.client.request_format import Call
from sarathi.bench.client.run_listener import RunListener
from sarathi.bench.machine_info import describe_machine
from sarathi.bench.results import Run
from sarathi.bench.target import Subject
from sarathi.bench.workload.prompt_text import write_prompts
from sarathi.bench.workload.token_counter import TokenCounter
from sarathi.bench.workload.workload import Plan, Workload
from sarathi.errors import BenchmarkError
from sarathi.telemetry import Targets, summarise


@dataclass(frozen=True)
class Load:
    """What is sent, beside its rate."""

    workload: Workload
    num_requests: int  # to be measured
    warm_up: int  # requests before them
    seed: int
    salt: str  # texts of prompts differ by it


@dataclass(frozen=True)
class Requests:
    """A load at a rate, ready to be sent, to several servers if need be."""

    load: Load
    rate: float | None
    plan: Plan
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class RunOptions:
    """How a run is judged."""

    timeout: float  # seconds without an event after which a request has failed
    max_lag: float  # seconds; of the client at P99, above which a run is invalid
    targets: Targets | None = None  # for goodput


def prepare(
    load: Load, rate: float | None, tokens: TokenCounter, max_model_len: int | None
) -> Requests:
    """Draw lengths and times, and write the prompts.

    Raises:
        BenchmarkError: the workload cannot be had at this rate or from this file.
    """
    plan = load.workload.plan(rate, load.num_requests, load.warm_up, load.seed, max_model_len)
    requests = plan.requests
    prompts = write_prompts(requests, tokens, load.salt, load.seed)
    calls = tuple(
        Call(planned.at, prompt, planned.prompt_tokens, planned.output_tokens)
        for planned, prompt in zip(requests, prompts, strict=True)
    )
    return Requests(load, rate, plan, calls)


def measure(subject: Subject, requests: Requests, terms: RunOptions, watch: RunListener) -> Run:
    """Send them all. Where the server is gone at the end, the run is invalid, but kept.

    Raises:
        BenchmarkError: the server is gone before it began, or nothing was measured.
    """
    subject.check()
    played = uvloop.run(
        play(
            subject.endpoint,
            subject.facts.dialect,
            requests.calls,
            timeout=terms.timeout,
            watch=watch,
        )
    )
    gone = _gone(subject)
    load, plan = requests.load, requests.plan
    records = [
        record
        for index, record in zip(played.indices, played.records, strict=True)
        if index >= plan.num_warm_up
    ]
    if not records:
        raise BenchmarkError(gone or f"nothing was measured: {played.stopped}")
    send_time = None if played.stopped else plan.measured_seconds
    return Run(
        label=subject.label,
        server=subject.server,
        model=subject.facts.model,
        workload=load.workload.describe(),
        machine=describe_machine(),
        began=played.began,
        rate=requests.rate,
        seed=load.seed,
        salt=load.salt,
        num_shortened=plan.num_shortened,
        records=records,
        summary=summarise(records, terms.targets, send_time),
        lag=played.lag,
        targets=terms.targets,
        invalid=gone or _invalid(played, terms.max_lag),
        stopped=played.stopped,
    )


def _gone(subject: Subject) -> str | None:
    """Why the server does not answer any more; None where it does."""
    try:
        subject.check()
    except BenchmarkError as error:
        return str(error)
    return None


def _invalid(played: Played, max_lag: float) -> str | None:
    own = next((record for record in played.records if record.failure == "client"), None)
    if own is not None:
        return f"the client itself could not send a request: {own.detail}"
    if played.lag.p99 <= max_lag:
        return None
    return (
        f"the client itself was {1000 * played.lag.p99:.0f} ms late at P99, more than the "
        f"{1000 * max_lag:.0f} ms that are accepted: run it where it has a processor of its own"
    )
