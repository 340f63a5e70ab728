"""Tensor parallelism: the share of every layer that one of several ranks has.

Attention is split by heads, the MLP by inner features: the matrices that lead into them by rows,
those that lead out of them by columns, so that one sum over the ranks completes a block (Shoeybi
et al., Megatron-LM, 2019). The vocabulary is split by rows of the embedding and of the head.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from sarathi.errors import ModelError
from sarathi.models.decoder import EMBEDDING, Stage, head_of, whole_model
from sarathi.models.dummy_weights import RandomTensor, random_tensor
from sarathi.models.model_config import ModelConfig
from sarathi.models.quantized import IntegerForm, QuantizedRows
from sarathi.models.tensor_layout import expected_shapes
from sarathi.models.weights import ALL, Array, Weights

# Their inputs are split over the ranks: what is added to the output must be added once.
_ADDED_ONCE = ("self_attn.o_proj.bias", "mlp.down_proj.bias")


@dataclass(frozen=True)
class Shard:
    """One of `count` ranks that share the layers."""

    rank: int = 0
    count: int = 1


def shard_config(config: ModelConfig, count: int) -> ModelConfig:
    """Return the configuration of each of `count` ranks: its heads and inner features.

    If there are more ranks than key heads, several ranks have the same one. `ModelError` if they
    cannot be divided equally.
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


def vocabulary(config: ModelConfig, shard: Shard) -> range:
    """Return the token ids whose rows of embedding and head a rank has.

    All but the last ranks have equally many, and the matrices of all ranks are of equal size: rows
    of zeros pad those with fewer ids.
    """
    each = _padded_vocabulary(config, shard)
    first, stop = (min(rank * each, config.vocab_size) for rank in (shard.rank, shard.rank + 1))
    return range(first, stop)


def shard_shapes(config: ModelConfig, stage: Stage, shard: Shard) -> Mapping[str, tuple[int, ...]]:
    """Return name and shape of every tensor that a rank has of a stage of the model `config`.

    `ModelError` as from `shard_config`.
    """
    shapes = dict(expected_shapes(shard_config(config, shard.count), stage))
    for name in {EMBEDDING, head_of(config)} & shapes.keys():
        shapes[name] = (_padded_vocabulary(config, shard), config.hidden_size)
    return shapes


def _padded_vocabulary(config: ModelConfig, shard: Shard) -> int:
    return -(-config.vocab_size // shard.count)


class ShardedWeights:
    """The share of every tensor that one rank has; nothing else of the checkpoint is read.

    Names and everything else are as in `weights`, the whole model's. Tensors that all ranks need,
    such as norms, are whole; biases that are added to a sum over the ranks are zeros but on rank 0.
    `ModelError` as from `shard_config`.
    """

    def __init__(self, weights: Weights, config: ModelConfig, shard: Shard) -> None:
        self._weights = weights
        self._shard = shard
        self._shapes = shard_shapes(config, whole_model(config), shard)
        self._vocabulary = vocabulary(config, shard)
        self._over_vocabulary = (EMBEDDING, head_of(config))

    @property
    def mappings(self) -> tuple[mmap.mmap, ...]:
        return self._weights.mappings

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name] if name in self._shapes else self._weights.shape(name)

    def stored_dtype(self, name: str) -> np.dtype[np.generic] | None:
        rows, *columns = self._ranges(name)
        padded = len(rows) < self.shape(name)[0]
        cut = bool(columns) and len(columns[0]) < self._weights.shape(name)[1]
        return None if padded or cut else self._weights.stored_dtype(name)

    def __getitem__(self, name: str) -> Array:
        return self._weights[name] if self._shard.count == 1 else self.part(name)

    def part(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Array:
        wanted = range(self.shape(name)[0])[rows]
        own_rows, *own_columns = self._ranges(name)
        present = own_rows[wanted.start : wanted.stop]
        of_rows = own_columns[0][columns] if own_columns else range(0)
        found = self._weights.part(
            name, slice(present.start, present.stop), slice(of_rows.start, of_rows.stop)
        )
        missing = len(wanted) - len(present)
        if not missing:
            return found
        return np.concatenate((found, np.zeros((missing, *found.shape[1:]), found.dtype)))

    def stored_type(self, name: str) -> str:
        return self._weights.stored_type(name)

    def form(self, name: str) -> IntegerForm | None:
        return None  # ranks share no quantised matrices

    def quantized(self, name: str, rows: slice = ALL) -> QuantizedRows:
        raise ModelError(f"{name} is not quantised")

    def random(self, name: str) -> RandomTensor | None:
        """See `random_tensor`. The rows of zeros that pad a vocabulary are left out."""
        source = random_tensor(self._weights, name)
        if source is None:
            return None
        return source.part(*(slice(axis.start, axis.stop) for axis in self._ranges(name)))

    def _ranges(self, name: str) -> list[range]:
        """Return the rank's range of each axis of the whole tensor, without padding."""
        sizes = self._weights.shape(name)
        rank, count = self._shard.rank, self._shard.count
        ranges = [
            _block(size, local, rank, count)
            for size, local in zip(sizes, self.shape(name), strict=True)
        ]
        if name in self._over_vocabulary:
            ranges[0] = self._vocabulary
        if name.endswith(_ADDED_ONCE) and rank:
            ranges[0] = range(0)
        return ranges


def _block(size: int, local: int, rank: int, count: int) -> range:
    """Return the rank's block of `local` of `size` items; adjacent ranks may share one."""
    block = rank * (size // local) // count
    return range(block * local, (block + 1) * local)
