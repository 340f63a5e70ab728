"""The decoder-only transformer, written once.

`decode` describes the model over a dozen operations. An executor supplies them: one that builds a
graph gets a graph, one that computes gets logits. Families differ only in their `ModelConfig`, a
stage of a pipeline in its range of layers.

Where several ranks share every layer (tensor parallelism; Shoeybi et al., Megatron-LM, 2019), each
has some of the heads and of the MLP's inner features: its configuration counts its own, and
`reduce` adds up what the ranks have of a block's output.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from sarathi.models.config import ModelConfig
from sarathi.models.stage import Stage

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm"
HEAD = "lm_head.weight"

X = TypeVar("X")  # activations of all tokens of a step, [tokens, features]


class Operations(Protocol[X]):
    """What the decoder is made of. Weights are given by name; the operations know the values.

    The token ids, positions, block tables and sampled rows of a step are the operations' own.
    """

    def embed(self, weight: str) -> X:
        """The embeddings of the step's token ids, [tokens, hidden]."""

    def received(self) -> X:
        """What the pipeline stage before has computed, [tokens, hidden]."""

    def linear(self, x: X, weight: str, bias: str | None = None) -> X:
        """`x @ weight.T + bias`."""

    def rms_norm(self, x: X, weight: str) -> X:
        """`x / sqrt(mean(x^2) + eps) * weight` over the features."""

    def layer_norm(self, x: X, weight: str, bias: str) -> X:
        """`(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias` over the features."""

    def head_norm(self, x: X, weight: str, num_heads: int) -> X:
        """`rms_norm` over the features of every head, [tokens, num_heads * head_dim]."""

    def rotate(self, x: X, num_heads: int) -> X:
        """Rotary position embedding (Su et al., 2021), halves rotated, on every head."""

    def attend(self, query: X, key: X, value: X, layer: int) -> X:
        """Store keys and values in the layer's KV blocks, then causal attention over them."""

    def add(self, a: X, b: X) -> X: ...

    def multiply(self, a: X, b: X) -> X: ...

    def silu(self, x: X) -> X:
        """`x * sigmoid(x)`."""

    def gelu(self, x: X) -> X:
        """`x * (1 + erf(x / sqrt(2))) / 2`."""

    def reduce(self, x: X) -> X:
        """The sum over the ranks that share the layers; `x` itself where there is one."""

    def sampled_rows(self, x: X) -> X:
        """The rows whose logits the step asks for."""

    def logits(self, x: X, weight: str) -> X:
        """`linear`, its output features gathered from the ranks that share them."""


def decode(ops: Operations[X], config: ModelConfig, stage: Stage) -> X:
    """Logits of the sampled rows, [rows, vocab_size], or what goes to the next stage."""
    x = ops.embed(EMBEDDING) if stage.first else ops.received()
    for layer in stage.layers:
        x = _layer(ops, config, layer, x)
    if not stage.last:
        return x
    x = _norm(ops, config, ops.sampled_rows(x), NORM)
    return ops.logits(x, head_of(config))


def head_of(config: ModelConfig) -> str:
    """The matrix that gives logits."""
    return EMBEDDING if config.tie_word_embeddings else HEAD


def _layer(ops: Operations[X], config: ModelConfig, layer: int, x: X) -> X:
    name = f"model.layers.{layer}."
    normed = _norm(ops, config, x, name + "input_layernorm")
    attention = _attention(ops, config, layer, normed)
    if config.parallel:
        if config.mlp_norm:
            normed = _norm(ops, config, x, name + "post_attention_layernorm")
        both = ops.add(attention, _mlp(ops, config, layer, normed))
        return ops.add(x, ops.reduce(both))
    x = ops.add(x, ops.reduce(attention))
    normed = _norm(ops, config, x, name + "post_attention_layernorm")
    return ops.add(x, ops.reduce(_mlp(ops, config, layer, normed)))


def _norm(ops: Operations[X], config: ModelConfig, x: X, name: str) -> X:
    if config.norm == "layer":
        return ops.layer_norm(x, name + ".weight", name + ".bias")
    return ops.rms_norm(x, name + ".weight")


def _attention(ops: Operations[X], config: ModelConfig, layer: int, x: X) -> X:
    name = f"model.layers.{layer}.self_attn."

    def project(x: X, which: str, bias: bool) -> X:
        return ops.linear(x, f"{name}{which}.weight", f"{name}{which}.bias" if bias else None)

    query = project(x, "q_proj", config.qkv_bias)
    key = project(x, "k_proj", config.qkv_bias)
    value = project(x, "v_proj", config.qkv_bias)
    if config.qk_norm:
        query = ops.head_norm(query, name + "q_norm.weight", config.num_heads)
        key = ops.head_norm(key, name + "k_norm.weight", config.num_kv_heads)
    query = ops.rotate(query, config.num_heads)
    key = ops.rotate(key, config.num_kv_heads)
    return project(ops.attend(query, key, value, layer), "o_proj", config.output_bias)


def _mlp(ops: Operations[X], config: ModelConfig, layer: int, x: X) -> X:
    name = f"model.layers.{layer}.mlp."

    def project(x: X, which: str) -> X:
        bias = f"{name}{which}.bias" if config.mlp_bias else None
        return ops.linear(x, f"{name}{which}.weight", bias)

    activate = ops.gelu if config.activation == "gelu" else ops.silu
    if not config.gated_mlp:
        return project(activate(project(x, "up_proj")), "down_proj")
    gated = ops.multiply(activate(project(x, "gate_proj")), project(x, "up_proj"))
    return project(gated, "down_proj")
