"""The names that GGUF files give to the decoder's tensors."""

from __future__ import annotations

from collections.abc import Mapping

from sarathi.errors import ModelError
from sarathi.models.formats.gguf_file import GgufFile
from sarathi.models.model_config import ModelConfig
from sarathi.models.name_map import NameMap, Source, fused, renamed

SUPPORTED_ARCHITECTURES = ("llama", "qwen2", "qwen3", "phi3", "falcon")

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
}


def supported_architecture(file: GgufFile) -> str:
    """The architecture of a file; `ModelError` if it is none that is supported."""
    arch = file.text("general.architecture")
    if arch not in SUPPORTED_ARCHITECTURES:
        raise ModelError(
            f"{file.path}: general.architecture is {arch!r}, "
            f"supported are {', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    return arch


def name_map(config: ModelConfig) -> NameMap:
    inside = renamed(_INSIDE)
    if config.architecture in ("phi3", "falcon"):
        inside |= _stacked_attention(config)
    if config.architecture == "phi3":
        inner = config.intermediate_size
        inside |= fused("ffn_up", {"mlp.gate_proj": inner, "mlp.up_proj": inner})
    if config.architecture == "falcon" and config.mlp_norm:
        # The first norm is the MLP's here.
        inside |= renamed(
            {"input_layernorm": "attn_norm_2", "post_attention_layernorm": "attn_norm"}
        )
    return NameMap(outside=_OUTSIDE, layers="blk.", inside=inside)


def _stacked_attention(config: ModelConfig) -> dict[str, Source]:
    """All queries, then all keys, then all values: converters reorder those of Falcon so."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return fused(
        "attn_qkv",
        {"self_attn.q_proj": queries, "self_attn.k_proj": keys, "self_attn.v_proj": keys},
    )
