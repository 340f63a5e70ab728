"""What is simulated: the cost of iterations on some hardware, its KV memory, and the engines on it.

The known error of the cost model is printed beside every figure that comes from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from msgspec.structs import replace

from sarathi.engine import scheduler_factory
from sarathi.engine.config import EngineConfig
from sarathi.errors import SimulationError
from sarathi.scheduler import BlockPool, LatencyModel, Scheduler, Work
from sarathi.simulator.cost_model import (
    OVERHEADS,
    BatchShape,
    CostModel,
    EngineOverhead,
    Noise,
    stage_seconds,
)
from sarathi.simulator.deployment import Deployment, split_name
from sarathi.simulator.gpu_cost import GpuCostModel

GIB = 2**30


@dataclass(frozen=True)
class StageMemory:
    """Bytes on each worker of one stage."""

    weights: float
    activations: float
    block: float  # of one KV block
    usable: float

    @property
    def cache(self) -> float:
        return self.usable - self.weights - self.activations

    @property
    def blocks(self) -> int:
        return max(0, int(self.cache // self.block))


@dataclass(frozen=True)
class MemoryPlan:
    """The blocks of a replica: as many as fit into the stage with the least memory for them."""

    stages: tuple[StageMemory, ...]
    block_size: int  # tokens
    blocks: int
    text: str  # the arithmetic


def kv_blocks(
    deployment: Deployment, max_batched_tokens: int, block_size: int = 16, max_sequences: int = 128
) -> MemoryPlan:
    """Return the KV blocks of a replica.

    Args:
        max_batched_tokens: of one iteration, on which the activations depend.
        max_sequences: rows that may sample a token in one iteration.

    Raises:
        SimulationError: the weights do not fit, or the cache could not hold one request of
            `max_model_len`; the message shows the arithmetic.
    """
    for field, value in (
        ("max_batched_tokens", max_batched_tokens),
        ("block_size", block_size),
        ("max_sequences", max_sequences),
    ):
        if value < 1:
            raise SimulationError(f"{field} is {value}, expected at least 1")
    samples = min(max_sequences, max_batched_tokens)
    stages = tuple(
        _stage(deployment, stage, max_batched_tokens, block_size, samples)
        for stage in range(deployment.pp)
    )
    blocks = min(stage.blocks for stage in stages)
    text = "\n".join(
        (f"stage {number}: " if deployment.pp > 1 else "")
        + f"{deployment.device.memory / GIB:.2f} GiB x {deployment.memory_utilization:g}"
        f" = {stage.usable / GIB:.2f} GiB - weights {stage.weights / GIB:.2f}"
        f" - activations {stage.activations / GIB:.2f}"
        f" = {stage.cache / GIB:.2f} GiB for the KV cache; / {stage.block / 2**20:.3f} MiB a "
        f"block of {block_size} tokens = {stage.blocks} blocks"
        for number, stage in enumerate(stages)
    )
    split = split_name(deployment.tp, deployment.pp)
    title = f"{deployment.model.name} {split} on {deployment.device.title}"
    if any(stage.cache <= 0 for stage in stages):
        raise SimulationError(f"{title} does not fit\n{text}")
    needed = -(-deployment.max_model_len // block_size)
    if blocks < needed:
        raise SimulationError(
            f"{title} has {blocks} KV blocks of {block_size} tokens, and one request "
            f"of max_model_len {deployment.max_model_len} takes {needed}: expected max_model_len "
            f"at most {blocks * block_size}\n{text}"
        )
    return MemoryPlan(stages, block_size, blocks, text)


def _stage(
    deployment: Deployment, stage: int, tokens: int, block_size: int, samples: int
) -> StageMemory:
    model, layers = deployment.config, deployment.stage_layers[stage]
    first, last = stage == 0, stage == deployment.pp - 1
    # Key-value heads are replicated where they are fewer than the workers.
    projections = (2 * deployment.heads + 2 * deployment.kv_heads) * model.head_dim
    mlp = (3 if model.gated_mlp else 2) * model.intermediate_size // deployment.tp
    table = deployment.vocab * model.hidden_size
    tables = (first + last) if not model.tie_word_embeddings else (first or last)
    weights = layers * model.hidden_size * (projections + mlp) + tables * table
    # At the widest point of a layer: the residual, its norm, and what the MLP computes.
    width = 2 * model.hidden_size + mlp
    # Sampling works on single precision, and keeps a second copy.
    logits = samples * model.vocab_size * 4 * 2 if last else 0
    kv = 2 * deployment.kv_heads * model.head_dim * deployment.bytes_per_kv
    return StageMemory(
        weights=weights * deployment.bytes_per_weight,
        activations=tokens * width * 2 + logits,
        block=block_size * layers * kv,
        usable=deployment.device.memory * deployment.memory_utilization,
    )


# By device and term: median and 90th percentile of the absolute relative error on measurements that
# no constant was fitted to. The error table of `sarathi calibrate`, rows "held out".
HELD_OUT = {
    ("a100", "linear"): (0.027, 0.092),
    ("a100", "elementwise"): (0.052, 0.316),
    ("a100", "attention_prefill"): (0.031, 0.133),
    ("a100", "attention_decode"): (0.088, 0.202),
    ("a100", "all_reduce 4"): (0.143, 0.998),
    ("a100", "all_reduce 8"): (0.104, 0.347),
    ("a100", "all_reduce 16, two nodes"): (0.220, 1.115),
    ("a100-pairwise", "all_reduce 2"): (0.143, 0.293),
    ("a100-pairwise", "all_reduce 4"): (0.013, 0.051),
    ("a100-pairwise", "send_recv"): (0.065, 0.159),
    ("a100-pairwise", "send_recv, two nodes"): (0.141, 0.357),
    ("a40", "linear"): (0.032, 0.099),
    ("a40", "elementwise"): (0.040, 0.170),
    ("a40", "all_reduce 2"): (0.063, 0.164),
    ("a40", "all_reduce 4"): (0.044, 0.203),
    ("a40", "all_reduce 8"): (0.075, 0.290),
    ("a40", "send_recv"): (0.037, 0.089),
    ("a40", "send_recv, two nodes"): (0.114, 0.269),
    ("h100", "linear"): (0.045, 0.134),
    ("h100", "elementwise"): (0.070, 0.224),
    ("h100", "all_reduce 2"): (0.148, 2.367),
    ("h100", "all_reduce 4"): (0.065, 0.332),
    ("h100", "all_reduce 8"): (0.054, 0.218),
}
# The same chip, or the same pair, measured under the other name.
_MEASURED_AS = {
    ("a100-pairwise", "linear"): "a100",
    ("a100-pairwise", "elementwise"): "a100",
    ("a100-pairwise", "attention_prefill"): "a100",
    ("a100-pairwise", "attention_decode"): "a100",
    ("a100", "all_reduce 2"): "a100-pairwise",
}


@dataclass(frozen=True)
class KnownError:
    """Of the time of an iteration, the engine's overhead left out."""

    median: float  # of its measured terms, each by its share of the time
    p90: float
    unmeasured: float  # share of the time for which there is no measurement on the device

    def __str__(self) -> str:
        text = f"off by {self.median:.0%} in the median and {self.p90:.0%} at P90"
        if self.unmeasured >= 1:
            return "how far it is off is unknown, as nothing was measured on this device"
        if self.unmeasured >= 0.005:
            return f"{text}; unknown for {self.unmeasured:.0%} of the time"
        return text


def known_error(cost: GpuCostModel, shape: BatchShape) -> KnownError:
    """Return the error of one iteration, from the held-out errors of its terms.

    The errors of terms are added as if they always went the same way, which is the worst case.
    """
    seconds = unmeasured = median = p90 = 0.0
    for stage in cost.components(shape):
        for term, spent in vars(stage).items():
            seconds += spent
            error = _held_out(cost.deployment, term)
            if error is None:
                unmeasured += spent
            else:
                median += spent * error[0]
                p90 += spent * error[1]
    measured = seconds - unmeasured
    if measured <= 0:
        return KnownError(0.0, 0.0, 1.0)
    return KnownError(median / measured, p90 / measured, unmeasured / seconds)


def _held_out(deployment: Deployment, term: str) -> tuple[float, float] | None:
    name = deployment.device.name
    study = {"head": "linear", "embedding": "elementwise"}.get(term, term)
    if term == "all_reduce":
        study = f"all_reduce {deployment.tp}" + (", two nodes" if deployment.tp_crosses else "")
    elif term == "send_recv" and deployment.crossings:
        study = "send_recv, two nodes"
    return HELD_OUT.get((name, study)) or HELD_OUT.get((_MEASURED_AS.get((name, study), ""), study))


# A typical iteration under load: half of what the paper's larger budget allows.
_TYPICAL = BatchShape(32, 32 * 4096, ((2048, 992),), 32, 1024)


def describe_accuracy(deployment: Deployment) -> str:
    """Return what to print beside figures of a deployment: the error of a typical iteration."""
    cost = GpuCostModel(deployment, OVERHEADS["none"])
    return f"time on the GPU: {known_error(cost, _TYPICAL)}"


# Iterations that the latency model is fitted to: tokens of prompts, requests, and what of the
# longest request is in the cache.
_CHUNKS = (1, 16, 64, 128, 256, 512, 1024, 2048)
_DECODES = (1, 8, 32, 64, 128)
_DEPTHS = (0.0, 0.25, 0.5)


@dataclass(frozen=True)
class Setup:
    """Equal replicas."""

    description: dict[str, str]  # as options are written: model, device, tp and so on
    cost: CostModel
    config: EngineConfig
    num_blocks: int
    block_size: int
    max_model_len: int
    num_replicas: int
    devices_per_replica: int
    router: str  # a key of `simulation.ROUTERS`
    accuracy: str  # how far the cost model is off, in a sentence
    memory: str = ""  # the arithmetic behind `num_blocks`
    price: float | None = None  # dollars an hour, of a device
    noise: Noise | None = None  # in the times of iterations
    # From which a target follows where none is stated: the paper's.
    typical_decodes: scheduler_factory.TypicalDecodes = scheduler_factory.PAPER_DECODES

    @property
    def learns(self) -> bool:
        """Whether any decision depends on what the latency model has observed."""
        return self.config.latency_budget or self.config.order == "slack"

    def profile(self) -> LatencyModel:
        """Return a model fitted to iterations of many kinds, as by an engine at its start.

        With several pipeline stages it predicts one stage, since each has its part of the time
        between two tokens.
        """
        cost, longest = self.cost, self.max_model_len
        batches = {min(number, self.config.max_batch_size) for number in _DECODES}
        kinds = [*product((0,), _CHUNKS), *product(batches, (0, 128, 512))]
        shapes: list[BatchShape] = []
        for past in (int(depth * longest) for depth in _DEPTHS):
            shapes += [
                BatchShape.make(decodes, max(past, 1), ((past, length),) if length else ())
                for decodes, length in kinds
                if past + length <= longest
            ]
        works = [Work(s.tokens, s.attention, s.context, s.samples) for s in shapes]
        times = [stage_seconds(cost.overhead(s), cost.stages(s), cost.hop(s)) for s in shapes]
        return LatencyModel.fit(list(zip(works, times, strict=True)))

    def scheduler(self, prefix_caching: bool) -> Scheduler:
        """Return the scheduler of a new replica.

        Where prompts share no beginnings, prefix caching takes time and finds nothing.
        """
        config, model, stages = self.config, self.profile(), self.cost.num_stages
        typical = self.typical_decodes.fitting(config.max_batch_size, self.max_model_len)
        target = scheduler_factory.derived_target(stages * model.predict(typical.work))
        return scheduler_factory.make_scheduler(
            config if prefix_caching else replace(config, prefix_caching=False),
            scheduler_factory.make_budget(config, model, target.seconds, stages),
            model,
            BlockPool(self.num_blocks, self.block_size),
            self.max_model_len,
            stages,
        )


def engine_options(config: EngineConfig, max_model_len: int) -> dict[str, str]:
    """Return the options of an engine as they are typed, for descriptions of a setup."""
    options = {
        "policy": config.policy,
        "max-batch-size": str(config.max_batch_size),
        "max-model-len": str(max_model_len),
    }
    if config.fixed_budget is not None:
        options["token-budget"] = str(config.fixed_budget)
    if config.latency_budget and config.tbt_target is not None:
        options["tbt-target"] = f"{config.tbt_target:g}"
    if config.order != "fcfs":
        options["order"] = config.order
    return options


def gpu_setup(
    deployment: Deployment,
    config: EngineConfig,
    *,
    overhead: EngineOverhead = OVERHEADS["sarathi"],
    replicas: int = 1,
    router: str = "round_robin",
    price: float | None = None,
) -> Setup:
    """Return a setup of replicas on GPUs.

    Args:
        config: options of each engine; its `max_model_len` is that of the deployment.
        price: dollars an hour of a device; None: that of the device, if it has one.

    Raises:
        SimulationError: the model does not fit; the message shows the arithmetic.
    """
    longest = deployment.max_model_len
    memory = kv_blocks(
        deployment, config.max_step_tokens(longest), max_sequences=config.max_batch_size
    )
    description = {
        "model": deployment.model.name,
        "device": deployment.device.name,
        "tp": str(deployment.tp),
        "pp": str(deployment.pp),
        "nodes": str(deployment.num_nodes),
        "replicas": str(replicas),
        "router": router,
        "overhead": overhead.name,
        **engine_options(config, longest),
    }
    return Setup(
        description=description,
        cost=GpuCostModel(deployment, overhead),
        config=config,
        num_blocks=memory.blocks,
        block_size=memory.block_size,
        max_model_len=longest,
        num_replicas=replicas,
        devices_per_replica=deployment.workers,
        router=router,
        accuracy=describe_accuracy(deployment),
        price=deployment.device.price if price is None else price,
        memory=memory.text,
    )
