"""The KV blocks for which a deployment has memory beside weights and activations."""

from __future__ import annotations

from dataclasses import dataclass

from sarathi.errors import SimulationError
from sarathi.simulator.deployment import Deployment

GIB = 2**30
ACTIVATION = 2  # bytes of an element
LOGIT = 4  # bytes; sampling works on single precision, and keeps a second copy


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
        block_size: tokens of a block.
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
    text = _arithmetic(deployment, stages, block_size)
    split = f"TP{deployment.tp}" + (f"-PP{deployment.pp}" if deployment.pp > 1 else "")
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
    logits = samples * model.vocab_size * LOGIT * 2 if last else 0
    kv = 2 * deployment.kv_heads * model.head_dim * deployment.bytes_per_kv
    return StageMemory(
        weights=weights * deployment.bytes_per_weight,
        activations=tokens * width * ACTIVATION + logits,
        block=block_size * layers * kv,
        usable=deployment.device.memory * deployment.memory_utilization,
    )


def _arithmetic(deployment: Deployment, stages: tuple[StageMemory, ...], block_size: int) -> str:
    lines = []
    for number, stage in enumerate(stages):
        label = f"stage {number}: " if len(stages) > 1 else ""
        lines.append(
            f"{label}{deployment.device.memory / GIB:.2f} GiB x {deployment.memory_utilization:g}"
            f" = {stage.usable / GIB:.2f} GiB - weights {stage.weights / GIB:.2f}"
            f" - activations {stage.activations / GIB:.2f}"
            f" = {stage.cache / GIB:.2f} GiB for the KV cache; / {stage.block / 2**20:.3f} MiB a "
            f"block of {block_size} tokens = {stage.blocks} blocks"
        )
    return "\n".join(lines)
