"""The decoder-only transformer, written once.

`forward` describes the model over a dozen operations. A backend supplies them: one that builds a
graph returns a graph, one that computes returns logits. The operations are as coarse as the
largest kernel that a backend fuses, so each may compute them in one piece or in several. Families
differ only in their `ModelConfig`, a pipeline stage in its range of layers.

Where several ranks share every layer (tensor parallelism; Shoeybi et al., Megatron-LM, 2019), each
has some of the heads and of the MLP's inner features: its configuration counts its own, and
`reduce` sums the outputs of a block over the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from sarathi.errors import ModelError
from sarathi.models.model_config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm"
HEAD = "lm_head.weight"
# Projections of the same input, which a backend may compute as one matrix product.
QKV_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
GATED_PROJECTIONS = ("gate_proj", "up_proj")
DOWN_PROJECTION = "down_proj"

X = TypeVar("X")  # activations of all tokens of a step, [tokens, features]


@dataclass(frozen=True)
class Stage:
    """Consecutive layers of the decoder: all of them, or those of one pipeline stage."""

    layers: range
    first: bool = True  # embeds the tokens; otherwise it receives hidden states
    last: bool = True  # computes logits; otherwise it returns hidden states


def whole_model(config: ModelConfig) -> Stage:
    """Return the stage that has all layers."""
    return Stage(range(config.num_layers))


def pipeline_stages(config: ModelConfig, num_stages: int) -> tuple[Stage, ...]:
    """Return stages of equally many layers; `ModelError` if that is impossible."""
    num_layers = config.num_layers
    if num_layers % num_stages:
        possible = [n for n in range(1, num_layers + 1) if num_layers % n == 0]
        raise ModelError(
            f"{num_layers} layers cannot be shared out equally to {num_stages} pipeline stages, "
            f"only to {', '.join(map(str, possible))}"
        )
    each = num_layers // num_stages
    return tuple(
        Stage(range(i * each, (i + 1) * each), first=i == 0, last=i == num_stages - 1)
        for i in range(num_stages)
    )


class Operations(Protocol[X]):
    """The operations of the decoder, with the configuration of one rank.

    Weights are given by the name of a tensor or of its module (the name without `.weight` or
    `.bias`). The token ids, positions, KV cache, block tables and sampled rows of a step belong to
    the operations.
    """

    def embed(self, weight: str) -> X:
        """Look up the embeddings of the step's token ids, [tokens, hidden], and scale them."""

    def recv_hidden(self) -> X:
        """Return the hidden states that the previous pipeline stage computed, [tokens, hidden]."""

    def linear(self, x: X, name: str, bias: bool = False) -> X:
        """Compute `x @ weight.T`, plus the bias if there is one."""

    def norm(self, x: X, name: str) -> X:
        """Normalise over the features: RMSNorm or LayerNorm, by the configuration."""

    def add_norm(self, residual: X, delta: X, name: str) -> tuple[X, X]:
        """Return `residual + delta` and its `norm`."""

    def qkv(self, x: X, name: str, bias: bool) -> tuple[X, X, X]:
        """Project to queries, keys and values, [tokens, heads * head_dim] each.

        The weights are the `QKV_PROJECTIONS` of the attention module `name`.
        """

    def attention(self, query: X, key: X, value: X, layer: int) -> X:
        """Compute causal attention over the KV cache, [tokens, heads * head_dim].

        Queries and keys first get their head norms, if the configuration has them, and the rotary
        position embedding (Su et al., 2021; a head's halves are the pairs). Keys and values are
        written to the layer's KV cache before attention reads it.
        """

    def gated(self, x: X, name: str, bias: bool) -> X:
        """Compute `activate(x @ gate.T) * (x @ up.T)`, [tokens, inner].

        The weights are the `GATED_PROJECTIONS` of the MLP module `name`.
        """

    def activate(self, x: X) -> X:
        """Apply the activation: SiLU, `x * sigmoid(x)`, or GELU, `x * (1 + erf(x / sqrt(2))) / 2`,
        or its approximation `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3))) / 2`.

        The configuration has which.
        """

    def add(self, a: X, b: X) -> X:
        """Compute `a + b`."""

    def reduce(self, x: X) -> X:
        """Sum over the ranks that share the layers; may overwrite `x`, or return it."""

    def sampled_rows(self, x: X) -> X:
        """Select the rows whose logits the step asks for."""

    def logits(self, x: X, weight: str) -> X:
        """Compute `x @ weight.T`, its columns gathered from the ranks that share the vocabulary.

        They are capped softly, if the configuration says so.
        """


def forward(ops: Operations[X], config: ModelConfig, stage: Stage) -> X:
    """Compute the logits of the sampled rows, [rows, vocab_size].

    All stages but the last return the hidden states for the next one, [tokens, hidden].
    """
    x = forward_layers(ops, config, stage)
    return forward_head(ops, config, x) if stage.last else x


def forward_head(ops: Operations[X], config: ModelConfig, x: X) -> X:
    """Compute the logits of the sampled rows of hidden states, [rows, vocab_size]."""
    return ops.logits(ops.norm(ops.sampled_rows(x), NORM), head_of(config))


def forward_layers(ops: Operations[X], config: ModelConfig, stage: Stage) -> X:
    """Compute the hidden states after the layers of a stage, [tokens, hidden]. Those of the last
    one are normalised with `NORM` before anything is made of them."""
    residual = ops.embed(EMBEDDING) if stage.first else ops.recv_hidden()
    delta: X | None = None
    for layer in stage.layers:
        residual, delta = _layer(ops, config, layer, residual, delta)
    return residual if delta is None else ops.add(residual, delta)


def head_of(config: ModelConfig) -> str:
    """Return the name of the matrix that gives logits."""
    return EMBEDDING if config.tie_word_embeddings else HEAD


def attention_module(layer: int) -> str:
    """Return the name of a layer's attention module."""
    return f"model.layers.{layer}.self_attn"


def _layer(
    ops: Operations[X], config: ModelConfig, layer: int, residual: X, delta: X | None
) -> tuple[X, X]:
    """Compute one layer on the residual stream `residual + delta`.

    The sum is left to the next norm, so that a backend can fuse the two. The first layer of a
    stage has no `delta`. Returns the stream in the same form.
    """
    input_norm = f"model.layers.{layer}.input_layernorm"
    mlp_norm = f"model.layers.{layer}.post_attention_layernorm"
    if delta is None:
        normed = ops.norm(residual, input_norm)
    else:
        residual, normed = ops.add_norm(residual, delta, input_norm)
    attention = _attention(ops, config, layer, normed)
    if config.parallel:
        if config.mlp_norm:
            normed = ops.norm(residual, mlp_norm)
        return residual, ops.reduce(ops.add(attention, _mlp(ops, config, layer, normed)))
    attention = ops.reduce(attention)
    if config.output_norms:
        attention = ops.norm(attention, f"model.layers.{layer}.attention_output_norm")
    residual, normed = ops.add_norm(residual, attention, mlp_norm)
    mlp = ops.reduce(_mlp(ops, config, layer, normed))
    if config.output_norms:
        mlp = ops.norm(mlp, f"model.layers.{layer}.mlp_output_norm")
    return residual, mlp


def _attention(ops: Operations[X], config: ModelConfig, layer: int, x: X) -> X:
    name = attention_module(layer)
    query, key, value = ops.qkv(x, name, config.qkv_bias)
    mixed = ops.attention(query, key, value, layer)
    return ops.linear(mixed, f"{name}.o_proj", config.output_bias)


def _mlp(ops: Operations[X], config: ModelConfig, layer: int, x: X) -> X:
    name = f"model.layers.{layer}.mlp"
    if config.gated_mlp:
        inner = ops.gated(x, name, config.mlp_bias)
    else:
        inner = ops.activate(ops.linear(x, f"{name}.up_proj", config.mlp_bias))
    return ops.linear(inner, f"{name}.{DOWN_PROJECTION}", config.mlp_bias)
