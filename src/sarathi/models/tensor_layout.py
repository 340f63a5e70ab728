"""The tensors that a decoder needs, and the check that a checkpoint has these."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from sarathi.errors import ModelError
from sarathi.models.decoder import EMBEDDING, HEAD, NORM, Stage, head_of, whole_model
from sarathi.models.formats.harmless_fields import is_harmless_tensor
from sarathi.models.model_config import ModelConfig
from sarathi.models.name_map import NamedWeights

# Suffixes of the names of matrices in quantised safetensors, and who writes them.
_QUANTISED = {
    "GPTQ": re.compile(r"\.g_idx$"),
    "AWQ or GPTQ": re.compile(r"\.(qweight|qzeros|scales)$"),
    "compressed-tensors": re.compile(r"\.weight_(packed|shape|zero_point|g_idx)$"),
    "compressed-tensors or FP8": re.compile(r"\.weight_scale(_inv)?$"),
    "bitsandbytes": re.compile(r"\.(weight\.(absmax|quant_state\..+)|SCB)$"),
}
_COMPARED = 1 << 22  # values at a time


def expected_shapes(config: ModelConfig, stage: Stage) -> Mapping[str, tuple[int, ...]]:
    """Return name and shape of every tensor that a stage of `config` needs."""
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
    norms = (
        "input_layernorm",
        *(("post_attention_layernorm",) if config.mlp_norm else ()),
        *(("attention_output_norm", "mlp_output_norm") if config.output_norms else ()),
    )
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


def has_own_head(weights: NamedWeights) -> bool:
    """Return whether there is a head that differs from the embedding; read both until they do."""
    if HEAD not in weights or EMBEDDING not in weights:
        return False
    shape, dtype = weights.shape(HEAD), weights.stored_dtype(HEAD)
    if shape != weights.shape(EMBEDDING) or dtype != weights.stored_dtype(EMBEDDING):
        return True
    rows = max(1, _COMPARED // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0] if shape else 0, rows):
        part = slice(start, start + rows)
        if weights.part(HEAD, part).tobytes() != weights.part(EMBEDDING, part).tobytes():
            return True
    return False


def check_layout(config: ModelConfig, weights: NamedWeights) -> tuple[str, ...]:
    """Check that a checkpoint has the tensors of `config`, and return warnings about it.

    `ModelError` if a tensor is missing, has another shape, or is not used: then it belongs to
    another model than the configuration describes. Biases that are zero make no difference. Layers
    beyond the number in the configuration are ignored with a warning, as in `transformers`.
    """
    for method, names in _QUANTISED.items():
        quantised = [name for name in weights.stored_names if names.search(name)]
        if quantised:
            raise ModelError(
                f"the checkpoint has tensor {min(quantised)} of a quantisation ({method}), but the "
                "config.json has no quantization_config that describes it"
            )
    used = set()
    for name, expected in expected_shapes(config, whole_model(config)).items():
        used.add(weights.stored_name(name))
        found = weights.shape(name)
        if found != expected:
            raise ModelError(
                f"tensor {name} has shape {found}, the model's configuration asks for {expected}"
            )
    if config.tie_word_embeddings:
        used.add(weights.stored_name(HEAD))  # it equals the embedding
    unused = [name for name in weights.stored_names - used if not is_harmless_tensor(name)]
    beyond = {name for name in unused if (weights.layer_of(name) or 0) >= config.num_layers}
    unknown = sorted(name for name in unused if not (name in beyond or weights.is_zero_bias(name)))
    if unknown:
        more = f" (and {len(unknown) - 1} others)" if len(unknown) > 1 else ""
        raise ModelError(
            f"the checkpoint has tensor {unknown[0]}{more}, for which a model as its configuration "
            "describes it has no use: this may be another model, or another part of one"
        )
    if not beyond:
        return ()
    return (
        f"the checkpoint has more layers than the {config.num_layers} of its configuration: "
        "those beyond are left out",
    )
