"""Llama and those that differ from it in sizes, biases, windows and norms on heads."""

from __future__ import annotations

from sarathi.models.config import MAX_HEAD_DIM, MAX_LAYERS, ModelConfig
from sarathi.models.families.rope import inv_freq
from sarathi.models.fields import Fields
from sarathi.models.names import NameMap, fused

_DEFAULT_MAX_POSITION = {
    "LlamaForCausalLM": 2048,
    "MistralForCausalLM": 131072,
    "Qwen2ForCausalLM": 32768,
    "Qwen3ForCausalLM": 32768,
    "Phi3ForCausalLM": 4096,
}


def config(fields: Fields, architecture: str) -> ModelConfig:
    if fields.text("hidden_act", "silu") != "silu":
        raise fields.wrong("hidden_act", "silu")
    hidden_size = fields.required("hidden_size")
    num_heads = fields.required("num_attention_heads")
    num_layers = fields.required("num_hidden_layers", MAX_LAYERS)
    head_dim = fields.integer(
        "head_dim",
        # Qwen3 alone does not derive the default from the hidden size.
        128 if architecture == "Qwen3ForCausalLM" else hidden_size // num_heads,
        MAX_HEAD_DIM,
    )
    max_position = fields.integer("max_position_embeddings", _DEFAULT_MAX_POSITION[architecture])
    biases_by_field = architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM")
    attention_bias = biases_by_field and fields.boolean("attention_bias", False)
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.required("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.required("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_heads),
        head_dim=head_dim,
        norm_eps=fields.number("rms_norm_eps", 1e-5 if architecture == "Phi3ForCausalLM" else 1e-6),
        max_position=max_position,
        inv_freq=tuple(inv_freq(fields, head_dim, max_position).tolist()),
        sliding_windows=_sliding_windows(fields, architecture, num_layers),
        qkv_bias=architecture == "Qwen2ForCausalLM" or attention_bias,
        output_bias=attention_bias,
        mlp_bias=architecture == "LlamaForCausalLM" and fields.boolean("mlp_bias", False),
        qk_norm=architecture == "Qwen3ForCausalLM",
        tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
    )


def phi3_names(config: ModelConfig) -> NameMap:
    """Phi-3 stacks queries, keys and values in one matrix, gate and up in another."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    inner = config.intermediate_size
    return NameMap(
        inside={
            **fused(
                "self_attn.qkv_proj",
                {"self_attn.q_proj": queries, "self_attn.k_proj": keys, "self_attn.v_proj": keys},
            ),
            **fused("mlp.gate_up_proj", {"mlp.gate_proj": inner, "mlp.up_proj": inner}),
        }
    )


def _sliding_windows(fields: Fields, architecture: str, num_layers: int) -> tuple[int, ...]:
    if architecture == "LlamaForCausalLM":
        return (0,) * num_layers
    if architecture == "Phi3ForCausalLM":
        return (fields.integer("sliding_window", 0),) * num_layers
    if architecture == "MistralForCausalLM":
        # Null means none, while a file without the field means the first Mistral's window.
        window = 0 if fields.data.get("sliding_window", 4096) is None else 4096
        return (fields.integer("sliding_window", window),) * num_layers
    if not fields.boolean("use_sliding_window", False):
        return (0,) * num_layers
    # Null is none here too, and absent is the default of the library.
    default = 0 if "sliding_window" in fields.data else 4096
    window = fields.integer("sliding_window", default)
    kinds = fields.data.get("layer_types")
    if kinds is None:
        first = fields.data.get("max_window_layers", 28)
        if isinstance(first, bool) or not isinstance(first, int):
            raise fields.wrong("max_window_layers", "an integer")
        return tuple(window if layer >= first else 0 for layer in range(num_layers))
    if (
        not isinstance(kinds, list)
        or len(kinds) != num_layers
        or not set(kinds) <= {"full_attention", "sliding_attention"}
    ):
        raise fields.wrong(
            "layer_types", f"full_attention or sliding_attention for each of {num_layers} layers"
        )
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
