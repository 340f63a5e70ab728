"""Invented runs, searches and logs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sarathi.bench.report import CapacityWithRuns
from sarathi.bench.results import Capacity, Lag, Point, Run
from sarathi.telemetry import RequestRecord, Targets, summarise
from sarathi.telemetry.iteration_log import IterationLine, PromptSlice

WORKLOAD = {"prompt-lengths": "lognormal:430,1400", "arrivals": "poisson"}
MACHINE = "2 cores of a processor, 8 GiB, Linux 6.1"


def record(
    arrival: float = 0.0,
    gaps: Sequence[float] = (0.05,) * 9,
    prompt_tokens: int = 100,
    ttft: float = 0.2,
    failure: str | None = None,
) -> RequestRecord:
    tokens = (arrival + ttft + np.cumsum([0.0, *gaps])).tolist()
    return RequestRecord(
        arrival=arrival,
        prompt_tokens=prompt_tokens,
        output_tokens=len(tokens),
        tokens=tokens,
        end=tokens[-1],
        scheduling_delay=0.1,
        failure=failure,
        detail=None if failure is None else f"a <b>{failure}</b>",
    )


def records(count: int = 40, usual: float = 0.05, stall: float = 0.4) -> list[RequestRecord]:
    """One gap in about fifty is a stall."""
    rng = np.random.default_rng(count)
    found = []
    for i in range(count):
        gaps = usual * rng.uniform(0.8, 1.2, int(rng.integers(10, 60)))
        gaps[rng.random(len(gaps)) < 0.02] += stall
        prompt = int(rng.integers(10, 2000))
        found.append(record(i * 0.5, gaps.tolist(), prompt, 0.05 + prompt / 4000))
    return found


def run(
    label: str = "one",
    rate: float | None = 2.0,
    of: Sequence[RequestRecord] | None = None,
    targets: Targets | None = None,
    invalid: str | None = None,
    stopped: str | None = None,
) -> Run:
    found = records() if of is None else list(of)
    return Run(
        label=label,
        server=f"serve --name {label}",
        model="a model",
        workload=WORKLOAD,
        machine=MACHINE,
        began=1_764_000_000.0,
        rate=rate,
        seed=7,
        salt="cafe",
        records=found,
        summary=summarise(found, targets),
        lag=Lag(p50=0.0002, p99=0.003, max=0.01, cpu=0.05),
        invalid=invalid,
        stopped=stopped,
    )


def capacity(
    label: str = "one",
    capacity: float | None = 2.0,
    low: float | None = 1.5,
    high: float | None = 3.0,
    rates: Sequence[float] = (1.0, 2.0, 4.0),
    target: float = 0.2,
    stopped: Sequence[float] = (),
) -> CapacityWithRuns:
    """With stalls that are longer at higher rates.

    Args:
        stopped: the rates whose runs were.
    """
    runs = [
        run(
            label,
            rate,
            records(usual=0.03, stall=0.1 * rate),
            stopped="stopped early: because" if rate in stopped else None,
        )
        for rate in rates
    ]
    points = [
        Point(
            rate=one.rate or 0.0,
            met=capacity is not None and (one.rate or 0.0) <= capacity,
            reason="because of <i>it</i>",
            certain=True,
            stopped=one.stopped is not None,
            summary=one.summary,
            run=f"{one.rate}.json",
        )
        for one in runs
    ]
    result = Capacity(
        label=label,
        server=f"serve --name {label}",
        model="a model",
        workload=WORKLOAD,
        machine=MACHINE,
        tbt_target=target,
        delay_target=2.0,
        requests_per_point=40,
        resolution=0.05,
        capacity=capacity,
        low=low,
        high=high,
        points=points,
    )
    return CapacityWithRuns(result, runs)


def line(
    offset: float = 0.0,
    duration: float = 0.02,
    decodes: int = 3,
    prompt: int = 0,
    predicted: float | None = 0.02,
    budget: float | None = 0.1,
) -> IterationLine:
    return IterationLine(
        iteration=1,
        time=1e9 + offset,
        offset=offset,
        duration=duration,
        predicted=predicted,
        budget=budget,
        budget_unit=None if budget is None else "seconds",
        tokens=decodes + prompt,
        attention=0.0,
        context=0,
        samples=decodes,
        decodes=list(range(decodes)),
        prompts=[PromptSlice(99, 0, prompt)] if prompt else [],
        started=[],
        finished=[],
        cancelled=[],
        preempted=[],
        running=decodes,
        waiting=0,
        free_blocks=10,
        cached_blocks=0,
        parts={},
    )


def log(count: int = 100) -> list[IterationLine]:
    """The longest iteration is in the middle."""
    return [
        line(0.05 * i, 0.045 if i == count // 2 else 0.02, prompt=64 if i % 3 else 0)
        for i in range(count)
    ]
