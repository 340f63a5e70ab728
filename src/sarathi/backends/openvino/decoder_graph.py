"""The decoder as an OpenVINO graph with paged attention."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import openvino as ov
from openvino import opset13 as op
from openvino.op import Constant, _PagedAttentionExtension

from sarathi.backends.openvino.compressed_products import compressed_matrix
from sarathi.backends.openvino.native_attention import join_step
from sarathi.backends.openvino.native_kernels import NativeKernels
from sarathi.backends.openvino.native_matmul import activation_round, supports
from sarathi.backends.weight_store import WeightStore
from sarathi.models.decoder import (
    DOWN_PROJECTION,
    GATED_PROJECTIONS,
    NORM,
    QKV_PROJECTIONS,
    Stage,
    attention_module,
    forward_head,
    forward_layers,
)
from sarathi.models.model_config import ModelConfig
from sarathi.models.quantized import PackedMatrix
from sarathi.models.rope import F32, rope_tables
from sarathi.models.weights import Array, rounded

HIDDEN = "hidden"
# The inputs of a step, in the order of the fields of `Step`, the longest context, and the
# hidden states of the previous stage. A graph has those that it needs.
INPUTS: dict[str, tuple[type[np.generic], int]] = {
    "token_ids": (np.int64, 1),
    "positions": (np.int64, 1),
    "query_starts": (np.int32, 1),
    "past_lens": (np.int32, 1),
    "block_ids": (np.int32, 1),
    "block_starts": (np.int32, 1),
    "sample_rows": (np.int64, 1),
    "pooled_rows": (np.int64, 1),
    "max_context_len": (np.int32, 0),
    HIDDEN: (np.float32, 2),
}


def cache_inputs(layer: int) -> tuple[str, str]:
    """Name the graph's inputs for the key cache and the value cache of a layer."""
    return f"key_cache.{layer}", f"value_cache.{layer}"


def build_graph(
    config: ModelConfig,
    stage: Stage,
    weights: WeightStore,
    max_position: int,
    native: NativeKernels,
) -> ov.Model:
    """Build a graph from the arrays of a step and the KV cache to the output of `forward`.

    The last stage's has a second output, the normalised hidden states of the pooled rows. Positions
    must be below `max_position`. The graph reads `weights` in place: it must outlive
    what is compiled from the graph. `native` takes the place of the plugin's operations.
    """
    ops = _GraphOperations(config, weights, max_position, native)
    hidden = forward_layers(ops, config, stage)
    outputs = [hidden]
    if stage.last:
        # Costs nothing without pooled rows: the plugin skips what has no elements.
        outputs = [forward_head(ops, config, hidden), ops.norm(ops.pooled_rows(hidden), NORM)]
    return ov.Model([op.result(output) for output in outputs], ops.parameters, "decoder")


class _GraphOperations:
    """Builds nodes in the patterns that the CPU plugin fuses (RMS, RoPE, FullyConnected)."""

    def __init__(
        self,
        config: ModelConfig,
        weights: WeightStore,
        max_position: int,
        native: NativeKernels,
    ) -> None:
        self._config = config
        self._native = native
        self._weights = weights
        self._nodes: dict[str, ov.Node] = {}  # of the matrices
        self._inputs: dict[str, ov.Node] = {}
        self._caches: list[ov.Node] = []
        self._step: ov.Node | None = None  # of native attention
        self._ropes = [
            tuple(map(self._rope_table, rope_tables(inv_freq, max_position)))
            for inv_freq in config.inv_freqs
        ]

    @property
    def parameters(self) -> list[ov.Node]:
        return [*self._inputs.values(), *self._caches]

    def embed(self, weight: str) -> ov.Node:
        rows = op.gather(self._weight(weight), self._input("token_ids"), _ints(0))
        scale = rounded(self._config.embedding_scale, self._weights[weight].dtype)
        return rows if scale == 1 else op.multiply(rows, _float(scale))

    def recv_hidden(self) -> ov.Node:
        return self._input(HIDDEN)

    def linear(self, x: ov.Node, name: str, bias: bool = False) -> ov.Node:
        [y] = self._linears(x, [name], bias)
        return y

    def norm(self, x: ov.Node, name: str) -> ov.Node:
        if self._config.norm == "rms":
            return self._rms_norm(x, name)
        normed = op.mvn(x, _ints([-1]), True, self._config.norm_eps, "inside_sqrt")
        scaled = op.multiply(normed, self._vector(f"{name}.weight"))
        return op.add(scaled, self._vector(f"{name}.bias"))

    def add_norm(self, residual: ov.Node, delta: ov.Node, name: str) -> tuple[ov.Node, ov.Node]:
        x = op.add(residual, delta)
        return x, self.norm(x, name)

    def qkv(self, x: ov.Node, name: str, bias: bool) -> tuple[ov.Node, ov.Node, ov.Node]:
        query, key, value = self._linears(x, [f"{name}.{part}" for part in QKV_PROJECTIONS], bias)
        return query, key, value

    def attention(
        self, query: ov.Node, key: ov.Node, value: ov.Node, layer: int
    ) -> ov.Node | ov.Output:
        config, name = self._config, attention_module(layer)
        if config.qk_norm:
            query = self._head_norm(query, f"{name}.q_norm", config.num_heads)
            key = self._head_norm(key, f"{name}.k_norm", config.num_kv_heads)
        rope = self._ropes[config.rope_of(layer)]
        query = self._apply_rope(query, config.num_heads, *rope)
        key = self._apply_rope(key, config.num_kv_heads, *rope)
        native = self._native.attention
        if native is None:
            return self._paged_attention(query, key, value, layer)
        block = [-1, native.block_bytes]
        caches = [_parameter(name, block, np.uint8) for name in cache_inputs(layer)]
        self._caches += caches
        inputs = [query, key, value, *caches, self._joined_step()]
        return native.node([_output(operand) for operand in inputs], layer)

    def gated(self, x: ov.Node, name: str, bias: bool) -> ov.Node:
        gate, up = self._linears(x, [f"{name}.{part}" for part in GATED_PROJECTIONS], bias)
        return op.multiply(self.activate(gate), up)

    def activate(self, x: ov.Node) -> ov.Node:
        match self._config.activation:
            case "gelu":
                return op.gelu(x, "erf")
            case "gelu_tanh":
                return op.gelu(x, "tanh")
        return op.swish(x)

    def add(self, a: ov.Node, b: ov.Node) -> ov.Node:
        return op.add(a, b)

    def reduce(self, x: ov.Node) -> ov.Node:
        return x

    def sampled_rows(self, x: ov.Node) -> ov.Node:
        return op.gather(x, self._input("sample_rows"), _ints(0))

    def pooled_rows(self, x: ov.Node) -> ov.Node:
        return op.gather(x, self._input("pooled_rows"), _ints(0))

    def logits(self, x: ov.Node, weight: str) -> ov.Node:
        [product] = self._products(x, [weight])
        if not (cap := self._config.logit_soft_cap):
            return product
        return op.multiply(op.tanh(op.divide(product, _float(cap))), _float(cap))

    def _linears(self, x: ov.Node, names: Sequence[str], bias: bool) -> Sequence[ov.Node]:
        products = self._products(x, [f"{name}.weight" for name in names])
        if not bias:
            return products
        biases = [self._vector(f"{name}.bias") for name in names]
        return [op.add(*pair) for pair in zip(products, biases, strict=True)]

    def _products(self, x: ov.Node, weights: Sequence[str]) -> Sequence[ov.Node]:
        """Multiply with several matrices, in one native operation if they round activations alike.

        Otherwise separately: the plugin's products were faster than one of joined weights.
        """
        native, tensors = self._native.matmul, [self._weights[weight] for weight in weights]
        packed = [one for one in tensors if isinstance(one, PackedMatrix) and supports(one.form)]
        alike = len({activation_round(one.form) for one in packed}) == 1
        if native is not None and alike and len(packed) == len(tensors):
            # What a gate multiplies has outliers, beside which int8 would round the rest away.
            precise = weights[0].endswith(f"{DOWN_PROJECTION}.weight")
            return native.products(_output(x), packed, precise=precise)
        if len(weights) > 1:
            return [self._products(x, [weight])[0] for weight in weights]
        return [op.matmul(x, self._weight(weights[0]), transpose_a=False, transpose_b=True)]

    def _rms_norm(self, x: ov.Node, name: str) -> ov.Node:
        mean = op.reduce_mean(op.multiply(x, x), _ints([-1]), keep_dims=True)
        root = op.sqrt(op.add(mean, _float(self._config.norm_eps)))
        scaled = op.multiply(x, op.divide(_float(1.0), root))
        return op.multiply(self._vector(f"{name}.weight"), scaled)

    def _head_norm(self, x: ov.Node, name: str, num_heads: int) -> ov.Node:
        heads = op.reshape(x, _ints([-1, num_heads, self._config.head_dim]), special_zero=False)
        return self._flat(self._rms_norm(heads, name), num_heads)

    def _apply_rope(self, x: ov.Node, num_heads: int, cos: ov.Node, sin: ov.Node) -> ov.Node:
        dim = self._config.head_dim
        x = op.reshape(x, _ints([-1, num_heads, 1, dim]), special_zero=False)
        first = op.slice(x, _ints([0]), _ints([dim // 2]), _ints([1]), _ints([3]))
        # The fusion requires an open end here, and the axis -1 below.
        second = op.slice(x, _ints([dim // 2]), _ints([2**31 - 1]), _ints([1]), _ints([3]))
        swapped = op.concat([op.multiply(second, _float(-1.0)), first], -1)
        roped = op.add(op.multiply(x, cos), op.multiply(swapped, sin))
        return self._flat(roped, num_heads)

    def _paged_attention(
        self, query: ov.Node, key: ov.Node, value: ov.Node, layer: int
    ) -> ov.Output:
        config = self._config
        # The plugin chooses the layout (blocks, heads, tokens, head dimensions).
        caches = [
            _parameter(name, [-1, -1, -1, -1], ov.Type.dynamic) for name in cache_inputs(layer)
        ]
        self._caches += caches
        nothing = _i32([])
        node = _PagedAttentionExtension(
            [
                _output(operand)
                for operand in (
                    query,
                    key,
                    value,
                    *caches,
                    self._input("past_lens"),
                    self._input("query_starts"),
                    self._input("block_ids"),
                    self._input("block_starts"),
                    _float(config.score_scale),
                    _i32(config.sliding_windows[layer]),
                    op.constant(np.zeros(0, np.float32)),  # ALiBi slopes
                    self._input("max_context_len"),
                    # From here on unused features: attention scores, rotated blocks,
                    # sparse attention, sinks, adaptive eviction, token types.
                    *(3 * [nothing]),
                    op.constant(np.zeros(0, np.float32)),
                    op.constant(np.zeros(0, np.float32)),
                    _i32(0),
                    _i32(0),
                    op.constant(np.zeros((0, 0, 0, 0), np.float32)),
                    _i32(0),
                    *(4 * [nothing]),
                    op.constant(np.zeros(0, np.uint8)),
                    nothing,
                )
            ]
        )
        info = node.get_rt_info()
        info["num_k_heads"] = info["num_v_heads"] = config.num_kv_heads
        info["k_head_size"] = info["v_head_size"] = config.head_dim
        return node.output(0)

    def _joined_step(self) -> ov.Node:
        if self._step is None:
            names = ("past_lens", "query_starts", "block_starts", "block_ids")
            self._step = join_step(*map(self._input, names))
        return self._step

    def _input(self, name: str) -> ov.Node:
        if name not in self._inputs:
            dtype, rank = INPUTS[name]
            shape = [-1, self._config.hidden_size] if name == HIDDEN else [-1] * rank
            self._inputs[name] = _parameter(name, shape, dtype)
        return self._inputs[name]

    def _weight(self, name: str) -> ov.Node:
        """Return a matrix in the served form, f32 in name only; one node a tensor."""
        if name not in self._nodes:
            tensor = self._weights[name]
            if isinstance(tensor, PackedMatrix):
                self._nodes[name] = compressed_matrix(tensor)
            else:
                self._nodes[name] = _plain_matrix(tensor)
        return self._nodes[name]

    def _vector(self, name: str) -> ov.Node:
        """Return a norm's scale or a bias, always float32: the plugin's fusions require it."""
        return op.constant(self._weights[name][:].astype(np.float32))

    def _rope_table(self, values: F32) -> ov.Node:
        """Look up rows by position, for both halves of a head, [tokens, 1, 1, head_dim]."""
        table = op.constant(np.concatenate([values, values], axis=1))
        rows = op.gather(table, self._input("positions"), _ints(0))
        return op.reshape(rows, _ints([-1, 1, 1, self._config.head_dim]), special_zero=False)

    def _flat(self, x: ov.Node, num_heads: int) -> ov.Node:
        return op.reshape(x, _ints([-1, num_heads * self._config.head_dim]), special_zero=False)


def _plain_matrix(array: Array) -> ov.Node:
    node: ov.Node = Constant(_tensor(array), shared_memory=True)
    if node.get_element_type() != ov.Type.f32:
        node = op.convert(node, "f32")
        # Without this mark the plugin converts the weights: three times the memory.
        node.get_rt_info()["decompression_0"] = True
    return node


def _output(x: ov.Node | ov.Output) -> ov.Output:
    return x if isinstance(x, ov.Output) else x.output(0)


def _parameter(name: str, shape: list[int], dtype: type[np.generic] | ov.Type) -> ov.Node:
    node = op.parameter(shape, dtype, name=name)
    node.output(0).get_tensor().set_names({name})
    return node


_OV_TYPES = {
    np.dtype(np.float32): ov.Type.f32,
    np.dtype(np.float16): ov.Type.f16,
    np.dtype(ml_dtypes.bfloat16): ov.Type.bf16,
}


def _tensor(array: Array) -> ov.Tensor:
    """Make a tensor over the array's own memory, which may be read-only."""
    raw = np.frombuffer(array, np.uint8)  # the Python binding has no bfloat16
    return ov.Tensor(raw, ov.Shape(array.shape), _OV_TYPES[array.dtype])


def _ints(values: int | list[int]) -> ov.Node:
    return op.constant(np.array(values, np.int64))


def _i32(values: int | list[int]) -> ov.Node:
    return op.constant(np.array(values, np.int32))


def _float(value: float) -> ov.Node:
    return op.constant(np.array(value, np.float32))
