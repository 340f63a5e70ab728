"""The paper's models on their hardware, datasets, schedulers and targets.

Source: Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve",
OSDI 2024, sections 5.1 to 5.4, and the settings of its artifact (`osdi-experiments`). All
schedulers run on the same engine, with the overhead of the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sarathi.bench.workload.workload import Workload
from sarathi.engine.config import EngineConfig
from sarathi.simulator.cost_model import OVERHEADS
from sarathi.simulator.deployment import Deployment
from sarathi.simulator.devices import DEVICES
from sarathi.simulator.setup import Setup, gpu_setup
from sarathi.simulator.simulated_model import MODELS

SHAREGPT_FILE = "sharegpt_8k.csv"
_OVERHEAD = OVERHEADS["paper"]


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
        split = f"TP{self.tp}" + (f"-PP{self.pp}" if self.pp > 1 else "")
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
    """Return the setup of a system on a testbed.

    Raises:
        SimulationError: it does not fit.
    """
    return gpu_setup(testbed.deployment(max_total), system.config(max_total), overhead=_OVERHEAD)


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
