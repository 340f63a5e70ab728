"""Llama, and the families that differ in sizes, biases, windows, head norms: Mistral to Phi-3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sarathi.models.json_fields import Fields
from sarathi.models.model_config import MAX_HEAD_DIM, MAX_LAYERS, ModelConfig
from sarathi.models.name_map import NameMap, Source, fused, fused_qkv
from sarathi.models.rope import read_inv_freq


@dataclass(frozen=True, kw_only=True)
class _Defaults:
    """What absent fields mean, as in the library's configuration class of the architecture."""

    max_position: int
    num_kv_heads: int | None = None  # None: as many as query heads
    head_dim: int | None = None  # None: the hidden size over the number of heads
    norm_eps: float = 1e-6
    window: int = 0  # tokens; 0 is none
    slides: bool = True  # whether a window counts without `use_sliding_window`


_DEFAULTS: Mapping[str, _Defaults] = {
    "LlamaForCausalLM": _Defaults(max_position=2048),
    "MistralForCausalLM": _Defaults(max_position=131072, num_kv_heads=8, window=4096),
    "Qwen2ForCausalLM": _Defaults(max_position=32768, num_kv_heads=32, window=4096, slides=False),
    "Qwen3ForCausalLM": _Defaults(
        max_position=32768, num_kv_heads=32, head_dim=128, window=4096, slides=False
    ),
    "Phi3ForCausalLM": _Defaults(max_position=4096, norm_eps=1e-5),
}


def read_config(fields: Fields, architecture: str) -> ModelConfig:
    """Return the configuration that a config.json describes; see `Family`."""
    if fields.text("hidden_act", "silu") != "silu":
        raise fields.wrong("hidden_act", "silu")
    hidden_size = fields.required("hidden_size")
    num_heads = fields.required("num_attention_heads")
    num_layers = fields.required("num_hidden_layers", MAX_LAYERS)
    defaults = _DEFAULTS[architecture]
    head_dim = fields.integer(
        "head_dim", defaults.head_dim or hidden_size // num_heads, MAX_HEAD_DIM
    )
    # Null means as many as query heads everywhere, while an absent field has a default.
    num_kv_heads = num_heads if fields.is_null("num_key_value_heads") else defaults.num_kv_heads
    max_position = fields.integer("max_position_embeddings", defaults.max_position)
    biases_by_field = architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM")
    attention_bias = biases_by_field and fields.boolean("attention_bias", False)
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.required("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.required("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_kv_heads or num_heads),
        head_dim=head_dim,
        norm_eps=fields.number("rms_norm_eps", defaults.norm_eps),
        max_position=max_position,
        inv_freq=tuple(read_inv_freq(fields, head_dim, max_position).tolist()),
        sliding_windows=_sliding_windows(fields, architecture, num_layers, max_position),
        qkv_bias=architecture == "Qwen2ForCausalLM" or attention_bias,
        output_bias=attention_bias,
        mlp_bias=architecture == "LlamaForCausalLM" and fields.boolean("mlp_bias", False),
        qk_norm=architecture == "Qwen3ForCausalLM",
        tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
    )


def phi3_name_map(config: ModelConfig) -> NameMap:
    """Return where Phi-3 has its tensors: queries, keys, values in one matrix, as gate and up."""
    return NameMap(inside=_fused_modules(config, "self_attn.qkv_proj", "mlp.gate_up_proj"))


def phi3_gguf_modules(config: ModelConfig) -> dict[str, Source]:
    """Return the same for GGUF files."""
    return _fused_modules(config, "attn_qkv", "ffn_up")


def _fused_modules(config: ModelConfig, qkv: str, gate_up: str) -> dict[str, Source]:
    inner = config.intermediate_size
    return {
        **fused_qkv(qkv, config),
        **fused(gate_up, {"mlp.gate_proj": inner, "mlp.up_proj": inner}),
    }


def _sliding_windows(
    fields: Fields, architecture: str, num_layers: int, max_position: int
) -> tuple[int, ...]:
    """Return one window a layer: `layer_types` decides which layers slide, in every family.

    `transformers` reads the list for Qwen alone, and lets all layers of Mistral and Phi-3 slide;
    but a file that has it was made for a program that reads it.
    """
    defaults = _DEFAULTS[architecture]
    window = fields.optional_size("sliding_window", defaults.window)
    if not fields.boolean("use_sliding_window", defaults.slides):
        window = 0
    kinds = read_layer_types(fields, num_layers)
    if kinds is not None and "sliding_attention" in kinds:
        if architecture == "LlamaForCausalLM":
            raise fields.wrong("layer_types", "full_attention alone: Llama has no sliding window")
        if not window:
            raise fields.wrong("layer_types", "full_attention alone where there is no window")
    if kinds is not None or not window or not defaults.slides or max_position <= window:
        first = fields.value("max_window_layers", 28)
        if isinstance(first, bool) or not isinstance(first, int):
            raise fields.wrong("max_window_layers", "an integer")
    if kinds is not None:
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    if architecture == "LlamaForCausalLM":
        if window and window < max_position:
            raise fields.wrong("sliding_window", "none: Llama has no sliding window")
        return (0,) * num_layers
    if not window or defaults.slides:
        return (window,) * num_layers
    return tuple(window if layer >= first else 0 for layer in range(num_layers))


def read_layer_types(fields: Fields, num_layers: int) -> list[str] | None:
    """Return `full_attention` or `sliding_attention` for each layer, if the file says it."""
    kinds = fields.value("layer_types")
    if kinds is not None and (
        not isinstance(kinds, list)
        or len(kinds) != num_layers
        or not all(kind in ("full_attention", "sliding_attention") for kind in kinds)
    ):
        raise fields.wrong(
            "layer_types", f"full_attention or sliding_attention for each of {num_layers} layers"
        )
    return kinds
