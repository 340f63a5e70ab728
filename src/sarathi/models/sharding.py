"""The share of every layer that one of several ranks has (tensor parallelism).

Attention is split by heads, the MLP by inner features: the matrices that lead into them by rows,
those that lead out of them by columns, so that one sum over the ranks completes a block (Shoeybi
et al., Megatron-LM, 2019). The vocabulary is split by rows of the embedding and of the head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sarathi.models.config import ModelConfig, ModelError


@dataclass(frozen=True)
class Shard:
    """One of `count` ranks that share the layers."""

    rank: int = 0
    count: int = 1


def shard_config(config: ModelConfig, count: int) -> ModelConfig:
    """The heads and inner features that each of `count` ranks has.

    Ranks that are more than the key heads have one each, several of them the same.

    Raises:
        ModelError: they cannot be shared out equally.
    """
    for name, number in (("heads", config.num_heads), ("MLP features", config.intermediate_size)):
        if number % count:
            raise ModelError(f"{number} {name} cannot be shared out equally to {count} ranks")
    keys = config.num_kv_heads
    if keys % count and count % keys:
        raise ModelError(f"{keys} key heads cannot be shared out equally to {count} ranks")
    return replace(
        config,
        num_heads=config.num_heads // count,
        num_kv_heads=max(1, keys // count),
        intermediate_size=config.intermediate_size // count,
    )
