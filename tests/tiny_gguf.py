"""The tiny checkpoints as GGUF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

from tests.tiny_models import CHAT_TEMPLATE, FAMILIES

# The Falcon of llama.cpp has neither biases nor an MLP after the attention, and files of Gemma 3 do
# not have the scale of the scores.
GGUF_FAMILIES = tuple(name for name in FAMILIES if name not in ("falcon-serial", "gemma3-scaled"))
_GGUF_ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}
_GGUF_NAMES = {
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
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
    "ln_attn": "attn_norm_2",
    "ln_mlp": "attn_norm",
    "word_embeddings": "token_embd",
    "ln_f": "output_norm",
}
_GEMMA_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def write_gguf(folder: Path, path: Path, quant: str = "F32") -> None:
    """Writes the checkpoint that `save_tiny` made as a GGUF file, as llama.cpp's converter would.

    Matrices are stored as `quant` where the block size divides their rows, vectors as F32.
    """
    config = json.loads((folder / "config.json").read_text())
    arch = _GGUF_ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(path, arch)
    _write_metadata(writer, config)
    _write_vocabulary(writer, json.loads((folder / "tokenizer.json").read_text()))
    heads = {
        "self_attn.q_proj": config["num_attention_heads"],
        "self_attn.k_proj": config.get("num_key_value_heads"),
    }
    names = _GGUF_NAMES | (_GEMMA_NAMES if arch in ("gemma2", "gemma3") else {})
    wanted = gguf.GGMLQuantizationType[quant]
    for name, tensor in load_file(folder / "model.safetensors").items():
        module, _, kind = name.removeprefix("model.").rpartition(".")
        module = module.removeprefix("transformer.")
        prefix = ""
        if module.startswith(("layers.", "h.")):
            _, index, module = module.split(".", 2)
            prefix = f"blk.{index}."
        array = tensor.astype(np.float32)
        if arch == "llama" and module in heads:
            halves = array.reshape(heads[module], 2, -1, *array.shape[1:])
            array = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
        if module == "self_attention.query_key_value":
            array = _queries_first(array, config)
        if arch.startswith("gemma") and module.endswith("norm"):
            array = array + 1
        block_size = gguf.GGML_QUANT_SIZES[wanted][0]
        fits = array.ndim == 2 and array.shape[1] % block_size == 0
        stored = wanted if fits else gguf.GGMLQuantizationType.F32
        data = _quantised(array, stored)
        writer.add_tensor(f"{prefix}{names[module]}.{kind}", data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# Where the blocks of types that the gguf package cannot make have their scales, bytes of float16s;
# that of minima is so many times the other one that elements are around 0.
_SCALES = {
    "Q2_K": {80: 1.0, 82: 1.5},
    "Q3_K": {108: 1.0},
    "Q4_K": {0: 1.0, 2: 7.5},
    "Q5_K": {0: 1.0, 2: 15.5},
    "Q6_K": {208: 1.0},
    "IQ4_NL": {0: 1.0},
    "IQ4_XS": {0: 1.0},
}


def _quantised(
    array: np.ndarray[Any, Any], kind: gguf.GGMLQuantizationType
) -> np.ndarray[Any, Any]:
    """Quantises a tensor; types for which gguf cannot are given random blocks of its spread."""
    try:
        return gguf.quants.quantize(array, kind)
    except NotImplementedError:
        return random_blocks(array.shape, kind, float(array.std()))


def random_blocks(
    shape: tuple[int, ...], kind: gguf.GGMLQuantizationType, spread: float = 1.0
) -> np.ndarray[Any, Any]:
    """The bytes of a matrix of random blocks, with elements of about such a spread."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(shape[0])
    raw = rng.integers(0, 256, (shape[0] * shape[1] // block, size), np.uint8)
    scale = np.float16(1.0)
    for _ in range(2):  # with a scale of 1, which shows the spread, then with the right one
        for offset, times in _SCALES[kind.name].items():
            scales = rng.uniform(0.5, 1.0, len(raw)) * float(scale) * times
            raw[:, offset : offset + 2] = scales.astype("<f2").view(np.uint8).reshape(-1, 2)
        found = gguf.quants.dequantize(raw.reshape(shape[0], -1), kind)
        scale = np.float16(spread / found.std())
    return raw.reshape(shape[0], -1)


def _queries_first(fused: np.ndarray[Any, Any], config: dict[str, Any]) -> np.ndarray[Any, Any]:
    """From Falcon's groups of query heads, key and value to all queries, all keys, all values."""
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    groups = config["num_kv_heads"] if config["new_decoder_architecture"] else 1
    by_group = fused.reshape(groups, -1, head_dim, fused.shape[1])
    parts = (by_group[:, :-2], by_group[:, -2], by_group[:, -1])
    return np.concatenate([part.reshape(-1, fused.shape[1]) for part in parts])


def _write_metadata(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config.get("intermediate_size") or config["ffn_hidden_size"])
    writer.add_head_count(config["num_attention_heads"])
    if config["model_type"] == "falcon":
        writer.add_head_count_kv(
            config["num_kv_heads"] if config["new_decoder_architecture"] else 1
        )
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    else:
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(rope, head_dim))
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
        # Files of Gemma leave the pattern out.
        if "layer_types" in config and not config["model_type"].startswith("gemma"):
            kinds = config["layer_types"]
            writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in kinds])
    if config["model_type"] == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def _llama3_factors(rope: dict[str, Any], head_dim: int) -> np.ndarray[Any, Any]:
    factors = []
    for index in range(head_dim // 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (2 * index / head_dim)
        turns = rope["original_max_position_embeddings"] / wavelength
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def _write_vocabulary(writer: gguf.GGUFWriter, tokenizer: dict[str, Any]) -> None:
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    special = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocab, key=lambda token: vocab[token]))
    writer.add_token_types([control if i in special else normal for i in range(len(vocab))])
    writer.add_token_merges([])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_tokenizer_gguf(
    path: Path,
    model: str,
    tokens: list[str],
    *,
    arch: str = "llama",
    name: str | None = None,
    **fields: Any,
) -> Path:
    """Writes a GGUF file with a vocabulary and no tensors; `fields` are of `tokenizer.ggml`.

    `name` is what the file calls itself, `chat_template` is the template
    itself, and `chat_template.rag` one with a name.
    """
    writer = gguf.GGUFWriter(path, arch)
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    if name is not None:
        writer.add_name(name)
    for field, value in fields.items():
        group = "tokenizer" if field.startswith("chat_template") else "tokenizer.ggml"
        key = f"{group}.{field}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
