"""Requests and runs with the latencies that a test wants."""

from __future__ import annotations

from collections.abc import Sequence

from sarathi.bench.results import Lag, Run
from sarathi.telemetry import RequestRecord, summarise


def record(
    gaps: Sequence[float] = (0.05,) * 9,
    *,
    arrival: float = 0.0,
    ttft: float = 0.2,
    delay: float | None = 0.1,
    failure: str | None = None,
) -> RequestRecord:
    tokens = [arrival + ttft]
    for gap in gaps:
        tokens.append(tokens[-1] + gap)
    return RequestRecord(
        arrival=arrival,
        prompt_tokens=20,
        output_tokens=len(tokens),
        tokens=tokens,
        end=tokens[-1],
        scheduling_delay=delay,
        failure=failure,
    )


def run(
    records: Sequence[RequestRecord],
    *,
    rate: float | None = 1.0,
    seed: int = 0,
    invalid: str | None = None,
    stopped: str | None = None,
) -> Run:
    return Run(
        label="Sarathi",
        server="sarathi serve tiny",
        model="tiny",
        workload={"prompt-lengths": "fixed:20"},
        machine="here",
        began=1.5e9,
        rate=rate,
        seed=seed,
        salt="",
        records=list(records),
        summary=summarise(records),
        lag=Lag(p50=0.0, p99=0.001, max=0.002, cpu=0.1),
        invalid=invalid,
        stopped=stopped,
    )
