"""An open loop in one process: requests arrive by the clock, whatever the engine does."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from perf.gpu_check.deadline import Deadline
from perf.gpu_check.decodes import greedy
from perf.gpu_check.loaded import cancel_all
from sarathi.bench.workload.workload import Plan, PlannedRequest
from sarathi.engine.core import EngineCore
from sarathi.scheduler import AdmissionError
from sarathi.telemetry import RequestRecord

_SLEEP = 0.001  # seconds at most, so that an arrival is noticed


def play(
    core: EngineCore, plan: Plan, vocab_size: int, seed: int, deadline: Deadline
) -> list[RequestRecord]:
    """Send the requests of a plan at their times, and time every token.

    As in the simulator, a request arrives when the plan says, and its tokens come when the
    iteration that gave them has ended. Requests that are open at the deadline are cancelled and
    count as failed.

    Args:
        core: an engine without requests.
        seed: of the prompts, which share no prefix.

    Returns:
        A record of each request, in the order of the plan.
    """
    planned = plan.requests
    prompts = _prompts(planned, vocab_size, seed)
    tokens: list[list[float]] = [[] for _ in planned]
    failures: dict[int, str] = {}
    delays: dict[int, float | None] = {}
    open_requests: set[int] = set()
    sent = 0
    began = time.monotonic()
    try:
        while (sent < len(planned) or open_requests) and deadline.left > 0:
            now = time.monotonic() - began
            while sent < len(planned) and planned[sent].at <= now:
                _submit(core, sent, planned[sent], prompts[sent], began, failures, open_requests)
                sent += 1
            if not core.has_work:
                if sent < len(planned):
                    time.sleep(min(_SLEEP, max(0.0, planned[sent].at - now)))
                continue
            outcome = core.step()
            now = time.monotonic() - began
            for output in outcome.outputs:
                tokens[output.id].append(now)
                if len(tokens[output.id]) == 1:
                    delays[output.id] = output.scheduling_delay
                if output.finish_reason is not None:
                    open_requests.discard(output.id)
            for refusal in outcome.failures:
                failures[refusal.id] = refusal.message
                open_requests.discard(refusal.id)
    finally:
        cancel_all(core, sorted(open_requests))
    for name in (*open_requests, *range(sent, len(planned))):
        failures[name] = "timeout"
    end = time.monotonic() - began
    return [
        RequestRecord(
            arrival=request.at,
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            tokens=times,
            end=times[-1] if times and name not in failures else max(end, request.at),
            scheduling_delay=delays.get(name),
            failure=failures.get(name),
        )
        for name, (request, times) in enumerate(zip(planned, tokens, strict=True))
    ]


def _submit(
    core: EngineCore,
    name: int,
    request: PlannedRequest,
    prompt: Sequence[int],
    began: float,
    failures: dict[int, str],
    open_requests: set[int],
) -> None:
    try:
        core.submit(name, prompt, greedy(request.output_tokens), began + request.at)
    except AdmissionError:
        failures[name] = "refused"
    else:
        open_requests.add(name)


def _prompts(planned: Sequence[PlannedRequest], vocab_size: int, seed: int) -> list[list[int]]:
    """Make all prompts before the first request arrives, since the loop has no time for it."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, each.prompt_tokens).tolist() for each in planned]
