"""The simulations behind the experiments, as jobs that processes can exchange."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from sarathi.bench.capacity.capacity_search import Search
from sarathi.bench.capacity.verdict import CapacityTargets, evaluate
from sarathi.bench.workload.workload import Plan, Workload
from sarathi.scheduler import Batch
from sarathi.simulator.reproduction.testbeds import (
    ARXIV,
    SHAREGPT,
    YI,
    Dataset,
    Options,
    System,
    Testbed,
    setup_of,
    workload_of,
)
from sarathi.simulator.simulated_run import SimulatedLoad, simulated_run
from sarathi.simulator.simulation import simulate
from sarathi.telemetry import Summary

RESOLUTION = 0.1  # relative, of capacities
STALL_REQUESTS = 128
_STALL = 1.0  # seconds without a token for any request
_DELAY = 2.0  # seconds of median scheduling delay, as in the paper
_HALVINGS = 6  # of the first rate: a run of few requests a minute is a long one
_PROMPT, _ANSWER = 2048, 64  # tokens, of requests that decode together


class Job(Hashable, Protocol):
    """One simulation. Equal jobs are run once, whichever experiments need them."""

    @property
    def title(self) -> str:
        """What progress reports call it."""

    def run(self) -> Any:
        """Simulate."""


Results = Mapping[Job, Any]


def run_job(job: Job) -> Any:
    """Run a job; worker processes find this function by its module."""
    return job.run()


@dataclass(frozen=True)
class RateJob:
    """One run at one rate; its result is a `Summary`."""

    testbed: Testbed
    system: System
    dataset: Dataset
    rate: float  # requests per second
    options: Options

    @property
    def title(self) -> str:
        return (
            f"{self.testbed.title}, {self.dataset.name}, {self.system.title}, "
            f"batch {self.system.max_batch}, {self.rate:g}/s"
        )

    def run(self) -> Summary:
        setup = setup_of(self.testbed, self.system, self.dataset.max_total)
        workload = workload_of(self.dataset, self.options.traces)
        load = SimulatedLoad(workload, self.options.requests, 0, self.options.seed)
        return simulated_run(setup, load, self.rate, self.title, most_records=1).summary


@dataclass(frozen=True)
class FoundCapacity:
    """The capacity under one target. Rates are requests per second."""

    target: float  # seconds of P99 TBT
    capacity: float | None  # None: no rate that was tried met the target
    low: float | None  # the highest rate that met it for certain
    high: float | None  # the lowest rate that missed it for certain
    bound: str  # what the lowest rate that missed it has missed
    lowest: float  # rate that was tried


@dataclass(frozen=True)
class CapacityJob:
    """A search for the capacity under several targets, all evaluated on the same runs."""

    testbed: Testbed
    system: System
    dataset: Dataset
    targets: tuple[float, ...]  # seconds of P99 TBT
    start: float  # requests per second
    options: Options

    @property
    def title(self) -> str:
        return f"capacity of {self.testbed.title}, {self.dataset.name}, {self.system.title}"

    def run(self) -> tuple[FoundCapacity, ...]:
        runs: dict[tuple[float, int], Summary] = {}  # by rate and number of requests
        return tuple(self._search(target, runs) for target in self.targets)

    def _search(self, target: float, runs: dict[tuple[float, int], Summary]) -> FoundCapacity:
        targets = CapacityTargets(target, _DELAY)
        search = Search(self.start, RESOLUTION, max_halvings=_HALVINGS)
        reasons: dict[float, tuple[bool, str]] = {}

        def record(rate: float, summary: Summary) -> None:
            verdict = evaluate(summary, targets)
            search.record(rate, verdict.met, verdict.certain)
            reasons[rate] = verdict.met, verdict.reason

        # A run for another target is evidence for this one, too.
        for (rate, _), summary in sorted(runs.items(), key=lambda run: run[0]):
            record(rate, summary)
        while (attempt := search.next()) is not None:
            key = attempt.rate, self.options.requests * 2**attempt.repeat
            if key not in runs:
                runs[key] = self._run(*key)
            record(attempt.rate, runs[key])
        above = [
            rate for rate, (met, _) in reasons.items() if not met and rate > (search.capacity or 0)
        ]
        return FoundCapacity(
            target,
            search.capacity,
            search.low,
            search.high,
            reasons[min(above)][1] if above else "",
            min(reasons),
        )

    def _run(self, rate: float, requests: int) -> Summary:
        options = replace(self.options, requests=requests)
        return RateJob(self.testbed, self.system, self.dataset, rate, options).run()


@dataclass(frozen=True)
class Stalls:
    """Tokens over time. Times are seconds from the arrival of all requests."""

    times: Sequence[float]  # of iterations that sampled tokens
    tokens: Sequence[int]  # sampled until then
    first: float  # until the second token of any request
    silences: Sequence[float]  # longer than a second without a token, after `first`
    longest: float
    summary: Summary


@dataclass(frozen=True)
class StallJob:
    """All requests of arxiv arrive at once."""

    system: System
    options: Options

    @property
    def title(self) -> str:
        return f"stalls of {YI.title}, {ARXIV.name}, {self.system.title}"

    def run(self) -> Stalls:
        requests = min(STALL_REQUESTS, self.options.requests)
        workload = workload_of(ARXIV, self.options.traces)
        plan = _all_at_once(workload, requests, self.options.seed, ARXIV.max_total)
        times: list[float] = []
        counts: list[int] = []
        decoded: list[float] = []

        def on_batch(replica: int, batch: Batch, began: float, ended: float) -> None:
            if batch.work.samples:
                times.append(ended)
                counts.append(batch.work.samples)
            if batch.num_decodes:
                decoded.append(ended)

        setup = setup_of(YI, self.system, ARXIV.max_total)
        outcome = simulate(setup, plan, seed=self.options.seed, most_records=1, on_batch=on_batch)
        gaps = np.diff([decoded[0], *(time for time in decoded if time > decoded[0])])
        return Stalls(
            times,
            np.cumsum(counts).tolist(),
            decoded[0],
            gaps[gaps > _STALL].tolist(),
            float(gaps.max(initial=0.0)),
            outcome.summary,
        )


@dataclass(frozen=True)
class DecodeJob:
    """Requests that decode together until all are done, with no prompts in between."""

    testbed: Testbed
    batch: int

    @property
    def title(self) -> str:
        return f"decodes of {self.testbed.title}, {self.testbed.hardware}, batch {self.batch}"

    def run(self) -> float | None:
        """Return P50 TBT in seconds."""
        system = System("decodes", "faster_transformer", max_batch=self.batch)
        workload = Workload.from_options(
            prompt_lengths=f"fixed:{_PROMPT}", output_lengths=f"fixed:{_ANSWER}"
        )
        plan = _all_at_once(workload, self.batch, 0, SHAREGPT.max_total)
        setup = setup_of(self.testbed, system, SHAREGPT.max_total)
        return simulate(setup, plan, most_records=1).summary.tbt.p50


def _all_at_once(workload: Workload, requests: int, seed: int, max_total: int) -> Plan:
    plan = workload.plan(1.0, requests, 0, seed, max_total)
    return replace(plan, times=np.zeros(len(plan)))
