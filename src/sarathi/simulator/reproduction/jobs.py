"""The paper's models on their hardware, datasets and schedulers, and simulations of them as jobs.

Source: Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve",
OSDI 2024, sections 5.1 to 5.4, and the settings of its artifact (`osdi-experiments`). All
schedulers run on the same engine, with the overhead of the paper's. Processes exchange jobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sarathi.bench.capacity.capacity_search import Search
from sarathi.bench.capacity.verdict import CapacityTargets, Verdict, evaluate
from sarathi.bench.workload.workload import Load, Plan, Workload
from sarathi.engine.config import EngineConfig
from sarathi.scheduler import Batch
from sarathi.simulator.cost_model import OVERHEADS
from sarathi.simulator.deployment import Deployment, split_name
from sarathi.simulator.devices import DEVICES
from sarathi.simulator.setup import Setup, gpu_setup
from sarathi.simulator.simulated_model import MODELS
from sarathi.simulator.simulated_run import simulated_run
from sarathi.simulator.simulation import simulate
from sarathi.telemetry import Summary

SHAREGPT_FILE = "sharegpt_8k.csv"


@dataclass(frozen=True)
class Options:
    """Options of the user."""

    requests: int = 1024  # of each point; the paper has 2048 for capacities, 1024 by rate
    seed: int = 0
    traces: str | None = None  # a folder; None: presets


@dataclass(frozen=True)
class Dataset:
    """A distribution of prompt and output lengths."""

    name: str  # a preset
    title: str
    max_total: int  # tokens of prompt and answer, and of the engine's longest request


SHAREGPT = Dataset("sharegpt", "openchat_sharegpt4", 8192)
ARXIV = Dataset("arxiv", "arxiv_summarization", 16384)
DATASETS = (SHAREGPT, ARXIV)


@dataclass(frozen=True)
class Testbed:
    """A model and what it runs on. Targets are seconds of P99 TBT."""

    model: str
    title: str
    device: str
    tp: int
    pp: int
    nodes: int
    strict: float
    relaxed: float
    relaxed_budget: int  # tokens of Sarathi's iterations; the strict one is 512 for all
    orca_batch: int
    rates: tuple[float, ...]  # of the artifact, for latency against load

    @property
    def hardware(self) -> str:
        split = split_name(self.tp, self.pp)
        nodes = f", {self.nodes} nodes" if self.nodes > 1 else ""
        return f"{self.tp * self.pp} x {DEVICES[self.device].title}, {split}{nodes}"

    def target(self, name: str) -> float:
        """Return the strict or the relaxed target in seconds."""
        return self.strict if name == "strict" else self.relaxed

    def deployment(self, max_total: int) -> Deployment:
        """Return one replica for requests of up to so many tokens."""
        return Deployment(
            model=MODELS[self.model],
            device=DEVICES[self.device],
            tp=self.tp,
            pp=self.pp,
            nodes=self.nodes,
            max_model_len=max_total,
        )


MISTRAL = Testbed(
    "mistral-7b", "Mistral-7B", "a100", 1, 1, 1, 0.1, 0.5, 2048, 16, (1, 2, 2.5, 3, 4)
)
YI = Testbed(
    "yi-34b", "Yi-34B", "a100-pairwise", 2, 1, 1, 0.2, 1.0, 2048, 16, (0.4, 0.55, 0.7, 0.85, 1)
)
LLAMA = Testbed(
    "llama2-70b", "LLaMA2-70B", "a40", 4, 2, 1, 1.0, 5.0, 1536, 8, (0.1, 0.2, 0.4, 0.6, 0.8)
)
FALCON = Testbed(
    "falcon-180b", "Falcon-180B", "a100-pairwise", 4, 2, 2, 1.0, 5.0, 2048, 8,
    (0.2, 0.4, 0.6, 0.8, 1),
)  # fmt: skip
FALCON_TP8 = Testbed("falcon-180b", "Falcon-180B", "a100-pairwise", 8, 1, 2, 1.0, 5.0, 2048, 8, ())
TESTBEDS = (MISTRAL, YI, LLAMA, FALCON)
STRICT_BUDGET = 512


@dataclass(frozen=True)
class System:
    """A scheduler and its options."""

    title: str
    policy: str
    token_budget: int | None = None
    max_batch: int = 128
    tbt_target: float | None = None  # seconds; the budget follows from it

    def config(self, max_total: int) -> EngineConfig:
        """Return the options of an engine for requests of up to so many tokens.

        Prompts are processed strictly in order, as published. Otherwise the median delay would be
        that of the short ones, and a load under which long ones wait without end would count as
        met.
        """
        by_target = self.tbt_target is not None
        return EngineConfig(
            policy=self.policy,
            token_budget=max_total if self.policy == "vllm" else self.token_budget,
            tbt_target=self.tbt_target,
            max_batch_size=self.max_batch,
            in_order_share=1.0,
            min_prefill_share=EngineConfig().min_prefill_share if by_target else 0.0,
        )


def vllm(max_batch: int = 128) -> System:
    """Return vLLM's scheduler."""
    return System("vLLM", "vllm", max_batch=max_batch)


def orca(max_batch: int) -> System:
    """Return Orca's scheduler."""
    return System("Orca", "orca", max_batch=max_batch)


def sarathi(budget: int, max_batch: int = 128) -> System:
    """Return Sarathi with a token budget."""
    return System(f"Sarathi, {budget} tokens", "sarathi", budget, max_batch)


def by_target(target: float) -> System:
    """Return Sarathi with the budget that a target of TBT in seconds leaves."""
    return System("Sarathi, budget from the target", "sarathi", tbt_target=target)


@lru_cache(maxsize=64)
def setup_of(testbed: Testbed, system: System, max_total: int) -> Setup:
    """Return the setup of a system on a testbed."""
    deployment, config = testbed.deployment(max_total), system.config(max_total)
    return gpu_setup(deployment, config, overhead=OVERHEADS["paper"])


@lru_cache(maxsize=8)
def workload_of(dataset: Dataset, traces: str | None) -> Workload:
    """Return the trace of the paper if it exists, or the published statistics.

    Raises:
        BenchmarkError: the trace cannot be read.
    """
    file = trace_file(dataset, traces)
    return Workload.from_options(workload=dataset.name if file is None else str(file))


def trace_file(dataset: Dataset, traces: str | None) -> Path | None:
    """Return the paper's trace; there is one of sharegpt alone, that of arxiv has other papers."""
    if traces is None or dataset is not SHAREGPT:
        return None
    file = Path(traces) / SHAREGPT_FILE
    return file if file.is_file() else None


RESOLUTION = 0.1  # relative, of capacities
STALL_REQUESTS = 128


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
        load = Load(workload, self.options.requests, 0, self.options.seed)
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

    first: RateJob  # where the search begins
    targets: tuple[float, ...]  # seconds of P99 TBT

    @property
    def title(self) -> str:
        first = self.first
        return f"capacity of {first.testbed.title}, {first.dataset.name}, {first.system.title}"

    def run(self) -> tuple[FoundCapacity, ...]:
        runs: dict[tuple[float, int], Summary] = {}  # by rate and number of requests
        return tuple(self._search(target, runs) for target in self.targets)

    def _search(self, target: float, runs: dict[tuple[float, int], Summary]) -> FoundCapacity:
        targets = CapacityTargets(target, delay=2.0)  # as in the paper
        # Few halvings: a run of few requests a minute is a long one.
        search = Search(self.first.rate, RESOLUTION, max_halvings=6)
        verdicts: dict[float, Verdict] = {}

        def record(rate: float, summary: Summary) -> None:
            verdict = verdicts[rate] = evaluate(summary, targets)
            search.record(rate, verdict.met, verdict.certain)

        # A run for another target is evidence for this one, too.
        for (rate, _), summary in sorted(runs.items(), key=lambda run: run[0]):
            record(rate, summary)
        while (attempt := search.next()) is not None:
            key = attempt.rate, self.first.options.requests * 2**attempt.repeat
            if key not in runs:
                runs[key] = self._run(*key)
            record(attempt.rate, runs[key])
        capacity = search.capacity
        above = [r for r, verdict in verdicts.items() if not verdict.met and r > (capacity or 0)]
        bound = verdicts[min(above)].reason if above else ""
        return FoundCapacity(target, capacity, search.low, search.high, bound, min(verdicts))

    def _run(self, rate: float, requests: int) -> Summary:
        options = replace(self.first.options, requests=requests)
        return replace(self.first, rate=rate, options=options).run()


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
            gaps[gaps > 1].tolist(),
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
        workload = Workload.from_options(prompt_lengths="fixed:2048", output_lengths="fixed:64")
        plan = _all_at_once(workload, self.batch, 0, SHAREGPT.max_total)
        setup = setup_of(self.testbed, system, SHAREGPT.max_total)
        return simulate(setup, plan, most_records=1).summary.tbt.p50


# Equal jobs are run once, whichever experiments need them.
Job = RateJob | CapacityJob | StallJob | DecodeJob
Results = Mapping[Job, Any]


def _all_at_once(workload: Workload, requests: int, seed: int, max_total: int) -> Plan:
    plan = workload.plan(1.0, requests, 0, seed, max_total)
    return replace(plan, times=np.zeros(len(plan)))
