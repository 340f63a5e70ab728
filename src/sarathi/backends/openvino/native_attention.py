"""Paged attention by an operation of our own, where that is faster than the plugin's."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import openvino as ov
from openvino import opset13 as op
from openvino.utils.node_factory import NodeFactory

from sarathi.backends.footprint import kv_block_bytes, u8_group
from sarathi.backends.openvino.native_build import NativeBuildError, native_library
from sarathi.backends.registry import Attention, KvPrecision, Precision
from sarathi.errors import ExecutorError
from sarathi.models.model_config import ModelConfig

_BLOCK_SIZE = 32  # tokens, as in the kernel
_MULTIPLE = 16  # of head dimensions that the kernel computes
_FROM_BYTES = 32 << 20  # of weights: below, an answer takes less time than compiling
_CPUINFO = Path("/proc/cpuinfo")


class NativeAttention:
    """Makes the nodes of a model's attention, for computation in f32 with a cache in u8."""

    def __init__(self, config: ModelConfig, library: Path) -> None:
        """Load the library; `RuntimeError` if the system cannot."""
        self._config = config
        self._factory = NodeFactory()
        self._factory.add_extension(library)

    @property
    def block_bytes(self) -> int:
        """Bytes of the keys, or of the values, of one block of a layer."""
        config = self._config
        return kv_block_bytes(config.num_kv_heads, config.head_dim, "u8", _BLOCK_SIZE) // 2

    def node(self, inputs: Sequence[ov.Node], layer: int) -> ov.Output:
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
        outputs = [operand.output(0) for operand in inputs]
        return self._factory.create("PagedAttention", outputs, attributes).output(0)


def join_step(
    past_lens: ov.Node, query_starts: ov.Node, block_starts: ov.Node, block_ids: ov.Node
) -> ov.Node:
    """Join the arrays of a step that attention reads, after the number of sequences."""
    count = op.shape_of(past_lens, "i32")
    return op.concat([count, past_lens, query_starts, block_starts, block_ids], 0)


def choose_attention(
    asked: Attention,
    config: ModelConfig,
    precision: Precision,
    kv_precision: KvPrecision,
    weight_bytes: int,
) -> tuple[NativeAttention | None, str]:
    """Return the native attention, or None for the plugin's, and a name for the operator.

    `auto` means native where it was measured to be faster. What is missing for it is no reason not
    to start: the plugin's takes its place, and the name says why.

    Raises:
        ExecutorError: native was asked for and is not possible.
    """
    if asked == "plugin":
        return None, "plugin"
    flags = processor_flags()
    problem = _problem(config, precision, kv_precision, flags)
    if asked == "auto" and (problem or "avx512f" in flags or weight_bytes < _FROM_BYTES):
        return None, "plugin"
    try:
        if problem:
            raise NativeBuildError(problem)
        return NativeAttention(config, native_library()), "native"
    except (NativeBuildError, RuntimeError) as error:
        if asked == "native":
            raise ExecutorError(f"--attention native is not possible: {error}") from error
        return None, f"plugin, since native is not possible: {error}"


@cache
def processor_flags() -> frozenset[str]:
    """Return the names of the processor's features, as Linux has them; none elsewhere."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), ":")
    return frozenset(flags.split(":", 1)[1].split())


def _problem(
    config: ModelConfig, precision: Precision, kv_precision: KvPrecision, flags: frozenset[str]
) -> str:
    """Return why the kernel cannot compute this; empty if it can."""
    if (precision, kv_precision) != ("f32", "u8"):
        return (
            f"it computes in f32 with a KV cache in u8, not in {precision} with {kv_precision}: "
            "--precision f32 --kv-precision u8"
        )
    dim = config.head_dim
    if dim % _MULTIPLE or u8_group(dim) < dim:  # its keys and values have one scale
        return f"heads have {dim} dimensions, expected a multiple of {_MULTIPLE} up to 128"
    if not {"avx2", "fma"} <= flags:
        return f"it needs an x86-64 processor with AVX2 and FMA under Linux ({platform.machine()})"
    return ""
