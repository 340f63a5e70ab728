"""What each process holds, how many KV blocks fit beside it, and how long a request may be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sarathi.backends.footprint import footprint
from sarathi.backends.parallel.rank_layout import ParallelLayout, RankId
from sarathi.backends.quantization import Forms
from sarathi.backends.registry import KvPrecision, Precision
from sarathi.engine.config import EngineConfig
from sarathi.errors import ConfigError
from sarathi.models.model_config import ModelConfig
from sarathi.models.sharding import shard_config

_FREE_MEMORY_SHARE = 0.5  # of the memory that is free once the model is loaded


@dataclass(frozen=True)
class ProcessShare:
    """The part of a model that one process holds."""

    rank_id: RankId
    layers: range
    num_heads: int
    num_kv_heads: int
    weight_bytes: int
    block_bytes: int  # of one KV block, over its layers and heads


@dataclass(frozen=True)
class Memory:
    """The memory of a machine or a device."""

    name: str
    free: int  # bytes, once the weights are loaded
    block_bytes: int  # of one KV block, over the layers and heads of all processes that use it
    shared: bool = True  # with other processes, so that not all of it can be used


@dataclass(frozen=True)
class KvCache:
    """The blocks of an engine. Every stage and rank has as many, each for its layers and heads."""

    num_blocks: int
    block_size: int  # tokens
    max_model_len: int  # tokens of the longest request: as requested, or as many as fit

    @property
    def tokens(self) -> int:
        """Tokens that all blocks hold."""
        return self.num_blocks * self.block_size


def requested_length(config: EngineConfig, model: ModelConfig) -> int:
    """Return the tokens of the longest request; `ConfigError` if the model has fewer."""
    if config.max_model_len is None:
        return model.max_position
    if config.max_model_len > model.max_position:
        raise ConfigError(
            f"max_model_len is {config.max_model_len}, but the model was made for at most "
            f"{model.max_position} tokens"
        )
    return config.max_model_len


def process_shares(
    config: ModelConfig,
    layout: ParallelLayout,
    precision: Precision,
    kv_precision: KvPrecision,
    block_size: int,
    forms: Forms,
) -> tuple[ProcessShare, ...]:
    """Return what each process of an engine will hold, in the order of the layout's ranks.

    `ModelError` if the layers cannot be divided like that.
    """
    stages, local = layout.stages(config), shard_config(config, layout.tp)
    heads = local.num_heads, local.num_kv_heads
    shares = []
    for rank_id in layout.ranks:
        stage = stages[rank_id.stage]
        size = footprint(
            config,
            stage,
            layout.shard(rank_id),
            precision=precision,
            kv_precision=kv_precision,
            block_size=block_size,
            forms=forms,
        )
        sizes = size.weight_bytes, size.block_bytes
        shares.append(ProcessShare(rank_id, stage.layers, *heads, *sizes))
    return tuple(shares)


def merge_memories(used: Iterable[Memory]) -> tuple[Memory, ...]:
    """Merge the memories that each process of an engine uses; several may use the same one."""
    merged: dict[str, Memory] = {}
    for memory in used:
        if (other := merged.get(memory.name)) is not None:
            free = min(other.free, memory.free)  # the last to look sees what the others use
            block_bytes = other.block_bytes + memory.block_bytes
            memory = replace(memory, free=free, block_bytes=block_bytes)
        merged[memory.name] = memory
    return tuple(merged.values())


def kv_cache(
    config: EngineConfig, max_model_len: int, memories: Sequence[Memory], block_size: int
) -> KvCache:
    """Return what to allocate: as many blocks everywhere as the smallest memory can hold.

    `max_model_len` is the result of `requested_length`. `ConfigError` if not even one block fits,
    or less than one request of the length asked for.
    """
    fitting = [_fitting_blocks(config, max_model_len, memory, block_size) for memory in memories]
    num_blocks = min(fitting)
    capacity = num_blocks * block_size
    if capacity < max_model_len and config.max_model_len is not None:
        num_bytes = num_blocks * memories[fitting.index(num_blocks)].block_bytes
        raise ConfigError(
            f"a KV cache of {capacity} tokens ({num_bytes / 1e6:.0f} MB) is too small for one "
            f"request of max_model_len {max_model_len}; give more with --kv-cache-memory or lower "
            "--max-model-len"
        )
    return KvCache(num_blocks, block_size, min(max_model_len, capacity))


def _fitting_blocks(
    config: EngineConfig, max_model_len: int, memory: Memory, block_size: int
) -> int:
    given = config.kv_cache_memory
    share = _FREE_MEMORY_SHARE / config.engines_here if memory.shared else 1.0
    num_bytes = int(memory.free * share) if given is None else given
    if num_bytes < memory.block_bytes:
        raise ConfigError(
            f"a KV cache of {num_bytes / 1e6:.1f} MB holds no block of {block_size} tokens, which "
            f"takes {memory.block_bytes / 1e6:.1f} MB on {memory.name}; give more with "
            "--kv-cache-memory"
        )
    useful = -(-config.max_batch_size * max_model_len // block_size)  # more would never be used
    return min(num_bytes // memory.block_bytes, useful)


def gigabytes(num_bytes: float) -> str:
    """Return a number of bytes as text, in GB."""
    return f"{num_bytes / 1e9:.3f} GB" if num_bytes < 1e10 else f"{num_bytes / 1e9:.1f} GB"
