"""The tensors a decoder needs, so that a checkpoint is checked before it is served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from sarathi.models.config import ModelConfig, ModelError


class Shapes(Protocol):
    def __contains__(self, name: object) -> bool: ...
    def shape(self, name: str) -> tuple[int, ...]: ...


def expected_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of `config` must have."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    attention = (
        ("q_proj", queries, hidden, config.qkv_bias),
        ("k_proj", keys, hidden, config.qkv_bias),
        ("v_proj", keys, hidden, config.qkv_bias),
        ("o_proj", hidden, queries, config.output_bias),
    )
    mlp = (
        *((("gate_proj", inner, hidden, config.mlp_bias),) if config.gated_mlp else ()),
        ("up_proj", inner, hidden, config.mlp_bias),
        ("down_proj", hidden, inner, config.mlp_bias),
    )
    kinds = ("weight", "bias") if config.norm == "layer" else ("weight",)
    norms = ("input_layernorm", *(("post_attention_layernorm",) if config.mlp_norm else ()))
    layer: dict[str, tuple[int, ...]] = {
        f"{norm}.{kind}": (hidden,) for norm in norms for kind in kinds
    }
    for block, projections in (("self_attn", attention), ("mlp", mlp)):
        for name, rows, columns, bias in projections:
            layer[f"{block}.{name}.weight"] = (rows, columns)
            if bias:
                layer[f"{block}.{name}.bias"] = (rows,)
    if config.qk_norm:
        layer["self_attn.q_norm.weight"] = (config.head_dim,)
        layer["self_attn.k_norm.weight"] = (config.head_dim,)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        **{f"model.norm.{kind}": (hidden,) for kind in kinds},
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for index in range(config.num_layers):
        shapes.update({f"model.layers.{index}.{name}": size for name, size in layer.items()})
    return shapes


def check_layout(config: ModelConfig, weights: Shapes) -> None:
    """Raises `ModelError` for the first tensor that is missing or of another shape."""
    for name, expected in expected_shapes(config).items():
        found = weights.shape(name)
        if found != expected:
            raise ModelError(
                f"tensor {name} has shape {found}, the model's configuration asks for {expected}"
            )
