"""Model configuration from the metadata of a GGUF file, and the names of its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from sarathi.errors import ModelError
from sarathi.models.families import GGUF_ARCHITECTURES
from sarathi.models.formats.gguf_file import GgufFile
from sarathi.models.formats.gguf_weights import ROPE_FACTORS, read_tensor
from sarathi.models.formats.harmless_fields import is_harmless_key
from sarathi.models.model_config import (
    MAX_HEAD_DIM,
    MAX_LAYERS,
    MAX_NUMBER,
    MIN_NUMBER,
    ModelConfig,
)
from sarathi.models.name_map import NameMap, renamed
from sarathi.models.rope import Frequencies, default_inv_freq, linear_scaled

_MINUS_ONE = 2**32 - 1  # as converters write -1 for none
_LONG_ROPE_FACTORS = "rope_factors_long.weight"

_OUTSIDE: Mapping[str, str] = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_INSIDE: Mapping[str, str] = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "attention_output_norm": "post_attention_norm",
    "mlp_output_norm": "post_ffw_norm",
}


def read_config(file: GgufFile) -> ModelConfig:
    """Return the configuration in the metadata of `file`; `ModelError` if it is not supported."""
    if (kind := file.text("general.type", "model")) != "model":
        raise file.error(
            f"general.type is {kind!r}, expected a model"
            + (": merge an adapter into its base model" if kind == "adapter" else "")
        )
    if (file.integer("split.count", 1) or 1) > 1:
        raise ModelError(
            f"{file.path} is one part of a split GGUF file, which is not supported: "
            "merge the parts with `llama-gguf-split --merge`"
        )
    arch = supported_architecture(file)
    if file.integer(f"{arch}.expert_count", 0):
        raise file.error(f"{arch}.expert_count is set, only dense models are supported")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{file.path} has no matrix token_embd.weight")
    hidden_size = _size(file, f"{arch}.embedding_length")
    num_layers = _size(file, f"{arch}.block_count", maximum=MAX_LAYERS)
    num_heads = _size(file, f"{arch}.attention.head_count")
    head_dim = _size(
        file, f"{arch}.attention.key_length", hidden_size // num_heads, maximum=MAX_HEAD_DIM
    )
    if _size(file, f"{arch}.attention.value_length", head_dim) != head_dim:
        raise file.error("keys and values of different length are not supported")
    family = GGUF_ARCHITECTURES[arch]
    width = hidden_size // num_heads if num_layers == family.scores_by_width else head_dim
    scale = file.number(f"{arch}.attention.scale", 0.0)
    if scale and not math.isclose(scale, width**-0.5, rel_tol=1e-5):
        raise file.error(f"{arch}.attention.scale is {scale:g}, supported is 1 / sqrt({width})")
    sliding_windows = _sliding_windows(file, arch, num_layers)
    norm_eps = "layer_norm_epsilon" if family.norm == "layer" else "layer_norm_rms_epsilon"
    config = ModelConfig(
        architecture=arch,
        vocab_size=embedding.shape[0],
        hidden_size=hidden_size,
        intermediate_size=_size(file, f"{arch}.feed_forward_length"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_size(file, f"{arch}.attention.head_count_kv", num_heads),
        head_dim=head_dim,
        norm_eps=file.number(f"{arch}.attention.{norm_eps}", 1e-6),
        max_position=_size(file, f"{arch}.context_length"),
        inv_freq=tuple(_inv_freq(file, arch, head_dim).tolist()),
        local_inv_freq=_local_inv_freq(file, arch, head_dim) if any(sliding_windows) else (),
        sliding_windows=sliding_windows,
        qkv_bias=not {"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"}.isdisjoint(file.tensors),
        output_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_up.bias" in file.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
        output_norms=family.output_norms,
        embedding_scale=hidden_size**0.5 if family.scaled_embeddings else 1.0,
        attention_scale=None if width == head_dim else width**-0.5,
        attention_soft_cap=_soft_cap(
            file, f"{arch}.attn_logit_softcapping", family.attention_soft_cap
        ),
        logit_soft_cap=_soft_cap(file, f"{arch}.final_logit_softcapping", family.logit_soft_cap),
        norm=family.norm,
        activation=family.activation,
        gated_mlp=family.gated_mlp,
        parallel=family.parallel,
        mlp_norm=not family.parallel or "blk.0.attn_norm_2.weight" in file.tensors,
        tie_word_embeddings="output.weight" not in file.tensors,
    )
    for name, value in file.unread(f"{arch}.").items():
        if not is_harmless_key(arch, name, value):
            shown = "a list" if value is None else repr(value)
            raise file.error(
                f"{arch}.{name} is {shown}, which is not supported: it may change the model"
            )
    return config


def supported_architecture(file: GgufFile) -> str:
    """Return the architecture of a file; `ModelError` if it is not supported."""
    arch = file.text("general.architecture")
    if arch not in GGUF_ARCHITECTURES:
        raise file.error(
            f"general.architecture is {arch!r}, supported are {', '.join(GGUF_ARCHITECTURES)}"
        )
    return str(arch)


def name_map(config: ModelConfig) -> NameMap:
    """Return where GGUF files keep the tensors of `config`."""
    modules = GGUF_ARCHITECTURES[config.architecture].modules
    inside = {**renamed(_INSIDE), **(modules(config) if modules else {})}
    return NameMap(outside=_OUTSIDE, layers="blk.", inside=inside)


def _size(file: GgufFile, key: str, default: int | None = None, *, maximum: int = 2**31 - 1) -> int:
    values = file.numbers(key)
    if values is None:
        if default is None:
            raise file.error(f"{key} is missing")
        return default
    distinct = set(values.tolist())
    if len(distinct) != 1:
        raise file.error(f"{key} differs between layers, which is not supported")
    (value,) = distinct
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
        raise file.error(f"{key} is {value}, expected an integer from 1 to {maximum}")
    return value


def _inv_freq(file: GgufFile, arch: str, head_dim: int) -> Frequencies:
    rotary_dims = _size(file, f"{arch}.rope.dimension_count", head_dim, maximum=MAX_HEAD_DIM)
    theta = file.number(f"{arch}.rope.freq_base", 10000.0)
    # Files older than rope.scaling.type have the factor of linear scaling alone.
    factor = file.number(
        f"{arch}.rope.scaling.factor", file.number(f"{arch}.rope.scale_linear", 1.0)
    )
    # A factor of 0 means none.
    if not all(MIN_NUMBER <= number <= MAX_NUMBER for number in (theta, factor or 1.0)):
        raise file.error(
            f"rope.freq_base is {theta:g} and rope.scaling.factor {factor:g}, "
            f"expected numbers from {MIN_NUMBER:g} to {MAX_NUMBER:g}"
        )
    scaling = file.text(f"{arch}.rope.scaling.type", "linear")
    if scaling not in ("none", "linear"):
        raise file.error(
            f"{arch}.rope.scaling.type is {scaling!r}, supported are none, linear "
            "and frequency factors (llama3)"
        )
    if _LONG_ROPE_FACTORS in file.tensors:
        raise ModelError(
            f"{file.path} has {_LONG_ROPE_FACTORS}: frequencies that depend on the length of the "
            "prompt (longrope) are not supported"
        )
    inv_freq = default_inv_freq(rotary_dims, theta)
    if scaling == "linear" and factor not in (0.0, 1.0):
        inv_freq = linear_scaled(inv_freq, factor)
    if ROPE_FACTORS in file.tensors:
        factors = read_tensor(file, ROPE_FACTORS).astype(np.float32)
        if factors.shape != inv_freq.shape or not (factors > 0).all():
            raise file.error(f"{ROPE_FACTORS} must hold {inv_freq.size} positive factors")
        inv_freq = inv_freq / factors
    return inv_freq


def _local_inv_freq(file: GgufFile, arch: str, head_dim: int) -> tuple[float, ...]:
    """Return the frequencies of layers with a window, which are never scaled."""
    if not (default := GGUF_ARCHITECTURES[arch].local_rope_theta):
        return ()
    key = f"{arch}.rope.freq_base_swa"
    theta = file.number(key, default)
    if not MIN_NUMBER <= theta <= MAX_NUMBER:
        raise file.error(f"{key} is {theta:g}, expected {MIN_NUMBER:g} to {MAX_NUMBER:g}")
    return tuple(default_inv_freq(head_dim, theta).tolist())


def _soft_cap(file: GgufFile, key: str, default: float | None) -> float:
    """Return a cap, 0 for none; it is not read where the architecture has none."""
    if default is None:
        return 0.0
    cap = file.number(key, default)
    if cap and not MIN_NUMBER <= cap <= MAX_NUMBER:
        raise file.error(f"{key} is {cap:g}, expected {MIN_NUMBER:g} to {MAX_NUMBER:g}, or 0")
    return cap


def _sliding_windows(file: GgufFile, arch: str, num_layers: int) -> tuple[int, ...]:
    """Return one window a layer; the pattern is a list of booleans, or n for n - 1 of n layers."""
    family = GGUF_ARCHITECTURES[arch]
    window = file.integer(f"{arch}.attention.sliding_window", family.window) or 0
    key = f"{arch}.attention.sliding_window_pattern"
    pattern = file.numbers(key)
    if window < 1 or window == _MINUS_ONE:
        return (0,) * num_layers
    if pattern is None:
        pattern = np.array([family.full_every])
    slides = pattern.tolist()
    if pattern.dtype.kind in "iu" and not file.is_array(key):
        period = slides[0]
        slides = [period < 1 or layer % period < period - 1 for layer in range(num_layers)]
    if len(slides) != num_layers or not set(slides) <= {0, 1}:
        raise file.error(
            f"{key} must be a list of {num_layers} booleans, or the number of layers "
            "of which the last one does not slide"
        )
    return tuple(window if each else 0 for each in slides)
