"""The tensors a decoder needs, so that a checkpoint is checked before it is served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from sarathi.models.config import ModelConfig, ModelError
from sarathi.models.decoder import EMBEDDING, NORM, head_of
from sarathi.models.stage import Stage, whole


class Shapes(Protocol):
    def __contains__(self, name: object) -> bool: ...
    def shape(self, name: str) -> tuple[int, ...]: ...


def expected_shapes(config: ModelConfig, stage: Stage) -> Mapping[str, tuple[int, ...]]:
    """Name and shape of every tensor that a stage of `config` must have."""
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
    matrix = (config.vocab_size, hidden)
    shapes: dict[str, tuple[int, ...]] = {}
    if stage.first:
        shapes[EMBEDDING] = matrix
    if stage.last:
        shapes.update({f"{NORM}.{kind}": (hidden,) for kind in kinds})
        shapes[head_of(config)] = matrix
    for index in stage.layers:
        shapes.update({f"model.layers.{index}.{name}": size for name, size in layer.items()})
    return shapes


def check_layout(config: ModelConfig, weights: Shapes) -> None:
    """Raises `ModelError` for the first tensor that is missing or of another shape."""
    for name, expected in expected_shapes(config, whole(config)).items():
        found = weights.shape(name)
        if found != expected:
            raise ModelError(
                f"tensor {name} has shape {found}, the model's configuration asks for {expected}"
            )
