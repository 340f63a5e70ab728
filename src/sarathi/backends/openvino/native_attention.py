"""Paged attention by a native operation."""

from __future__ import annotations

from collections.abc import Sequence

import openvino as ov
from openvino import opset13 as op
from openvino.utils.node_factory import NodeFactory

from sarathi.backends.footprint import kv_block_bytes, u8_group
from sarathi.backends.registry import KvPrecision, Precision
from sarathi.models.model_config import ModelConfig

_BLOCK_SIZE = 32  # tokens, as in the kernel
_MULTIPLE = 16  # of head dimensions that the kernel computes


class NativeAttention:
    """Makes the nodes of a model's attention, for computation in f32 with a cache in u8."""

    def __init__(self, config: ModelConfig, factory: NodeFactory) -> None:
        self._config = config
        self._factory = factory

    @property
    def block_bytes(self) -> int:
        """Bytes of the keys, or of the values, of one block of a layer."""
        config = self._config
        return kv_block_bytes(config.num_kv_heads, config.head_dim, "u8", _BLOCK_SIZE) // 2

    def node(self, inputs: Sequence[ov.Output], layer: int) -> ov.Node:
        """Add the attention of a layer to a graph.

        Args:
            inputs: query, key, value, the caches of keys and values, and `join_step`.
        """
        config = self._config
        attributes = {
            "heads": config.num_heads,
            "kv_heads": config.num_kv_heads,
            "window": config.sliding_windows[layer],
            "scale": config.score_scale,
        }
        return self._factory.create("PagedAttention", list(inputs), attributes)


def join_step(
    past_lens: ov.Node, query_starts: ov.Node, block_starts: ov.Node, block_ids: ov.Node
) -> ov.Node:
    """Join the arrays of a step that attention reads, after the number of sequences."""
    count = op.shape_of(past_lens, "i32")
    return op.concat([count, past_lens, query_starts, block_starts, block_ids], 0)


def attention_problem(config: ModelConfig, precision: Precision, kv_precision: KvPrecision) -> str:
    """Return why the operation cannot compute a model's attention; empty if it can."""
    if (precision, kv_precision) != ("f32", "u8"):
        return (
            f"it computes in f32 with a KV cache in u8, not in {precision} with {kv_precision}: "
            "--precision f32 --kv-precision u8"
        )
    dim = config.head_dim
    if dim % _MULTIPLE or u8_group(dim) < dim:  # its keys and values have one scale
        return f"heads have {dim} dimensions, expected a multiple of {_MULTIPLE} up to 128"
    return ""
