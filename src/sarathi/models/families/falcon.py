"""Falcon: 7B with one key head, 40B, 180B and 11B with the new decoder architecture."""

from __future__ import annotations

from sarathi.models.json_fields import Fields
from sarathi.models.model_config import MAX_LAYERS, ModelConfig
from sarathi.models.name_map import NameMap, Source, fused, fused_qkv, renamed
from sarathi.models.rope import read_inv_freq


def read_config(fields: Fields, architecture: str) -> ModelConfig:
    """Return the configuration that a config.json describes; see `Family`."""
    if fields.boolean("alibi", False):
        # `transformers` rounds these biases to bfloat16, which paged attention cannot imitate.
        raise fields.wrong("alibi", "false (rotary position embeddings)")
    if fields.text("activation", "gelu") != "gelu":
        raise fields.wrong("activation", "gelu")
    hidden_size = fields.required("hidden_size")
    num_heads = fields.required("num_attention_heads")
    if hidden_size % num_heads:
        raise fields.wrong("num_attention_heads", f"a divisor of hidden_size ({hidden_size})")
    num_layers = fields.required("num_hidden_layers", MAX_LAYERS)
    head_dim = hidden_size // num_heads
    max_position = fields.integer("max_position_embeddings", 2048)
    new = fields.boolean("new_decoder_architecture", False)
    parallel = fields.boolean("parallel_attn", True) or new
    num_norms = fields.integer("num_ln_in_parallel_attn", 2, maximum=2)
    num_kv_heads = fields.integer("num_kv_heads", num_heads)
    multi_query = fields.boolean("multi_query", True)
    if not new:
        num_kv_heads, num_norms = 1 if multi_query else num_heads, 1
    if num_heads % num_kv_heads:
        raise fields.wrong("num_kv_heads", f"a divisor of num_attention_heads ({num_heads})")
    if fields.integer("head_dim", head_dim) != head_dim:
        raise fields.wrong("head_dim", f"hidden_size / num_attention_heads ({head_dim})")
    bias = fields.boolean("bias", False)
    intermediate_size = fields.integer("ffn_hidden_size", 4 * hidden_size)
    if "ff_factor" in fields and fields.integer("ff_factor", 4) * hidden_size != intermediate_size:
        raise fields.wrong("ff_factor", f"{intermediate_size} / {hidden_size}, as ffn_hidden_size")
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.required("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        max_position=max_position,
        inv_freq=tuple(read_inv_freq(fields, head_dim, max_position).tolist()),
        sliding_windows=(0,) * num_layers,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        norm="layer",
        activation="gelu",
        gated_mlp=False,
        parallel=parallel,
        mlp_norm=not parallel or num_norms == 2,
        tie_word_embeddings=fields.boolean("tie_word_embeddings", True),
    )


def name_map(config: ModelConfig) -> NameMap:
    """Return where checkpoints keep the decoder's tensors.

    Queries, keys and values are one matrix: for each key head its query heads, it, its value head.
    """
    head = config.head_dim
    queries = config.num_heads // config.num_kv_heads * head
    two_norms = config.parallel and config.mlp_norm
    return NameMap(
        outside={
            "model.embed_tokens": "transformer.word_embeddings",
            "model.norm": "transformer.ln_f",
        },
        layers="transformer.h.",
        inside={
            **fused(
                "self_attention.query_key_value",
                {"self_attn.q_proj": queries, "self_attn.k_proj": head, "self_attn.v_proj": head},
                groups=config.num_kv_heads,
            ),
            **renamed(
                {
                    "self_attn.o_proj": "self_attention.dense",
                    "mlp.up_proj": "mlp.dense_h_to_4h",
                    "mlp.down_proj": "mlp.dense_4h_to_h",
                }
            ),
            **(
                renamed({"input_layernorm": "ln_attn", "post_attention_layernorm": "ln_mlp"})
                if two_norms
                else {}
            ),
        },
    )


def gguf_modules(config: ModelConfig) -> dict[str, Source]:
    """Return where GGUF files differ from Llama's: converters reorder the rows of `attn_qkv`."""
    modules = fused_qkv("attn_qkv", config)
    if config.mlp_norm:
        # The first norm is the MLP's here.
        modules |= renamed(
            {"input_layernorm": "attn_norm_2", "post_attention_layernorm": "attn_norm"}
        )
    return modules
