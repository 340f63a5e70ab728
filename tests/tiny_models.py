"""Tiny checkpoints with random weights, one for each family the decoder supports."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

VOCAB_SIZE = 256
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    # Large enough that greedy continuations differ from one prompt to the next.
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
    "rope_theta": 500000.0,
}
_LINEAR_ROPE = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}

_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-linear-rope": ("Llama", {"rope_parameters": _LINEAR_ROPE}),
    "llama3": ("Llama", {"rope_parameters": _LLAMA3_ROPE}),
    "yi": (
        "Llama",
        {"num_key_value_heads": 1, "rope_parameters": {"rope_theta": 5e6}, "rms_norm_eps": 1e-5},
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-sliding": ("Mistral", {"sliding_window": 12}),
    "qwen2": ("Qwen2", {"rope_parameters": {"rope_theta": 1e6}}),
    "qwen2-sliding": (
        "Qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 12,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3": ("Qwen3", {"rope_parameters": {"rope_theta": 1e6}}),
    "qwen3-wide-heads": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
}
FAMILIES = tuple(_FAMILIES)
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def save_tiny(family: str, folder: Path) -> None:
    """Saves a float32 checkpoint of `family` with a byte-level tokenizer; always the same one."""
    import torch
    import transformers

    name, changes = _FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**_SIZES, **changes})
    torch.manual_seed(FAMILIES.index(family))
    model = getattr(transformers, f"{name}ForCausalLM")(config).float()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            # The library starts them at 0 and 1, where a forgotten bias or norm goes unnoticed.
            if parameter_name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
            elif "norm" in parameter_name:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    save_tokenizer(folder)


def save_tokenizer(folder: Path) -> None:
    """A tokenizer with one token a byte, of which the first two are special (`<s>`, `</s>`).

    Two bytes that no UTF-8 text has (0xFE, 0xFF) make room for them among 256 ids.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = byte_letters()
    vocab = {"<s>": 0, "</s>": 1}
    vocab.update({letters[byte]: byte + 2 for byte in range(VOCAB_SIZE - 2)})
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken("<s>", special=True), AddedToken("</s>", special=True)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def byte_letters() -> list[str]:
    """The printable letter that byte-level vocabularies write for each byte (as in GPT-2)."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible}
    letters.update({byte: chr(256 + index) for index, byte in enumerate(hidden)})
    return [letters[byte] for byte in range(256)]


_GGUF_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
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
}


def write_gguf(folder: Path, path: Path, quant: str = "F32") -> None:
    """Writes the checkpoint that `save_tiny` made as a GGUF file, as llama.cpp's converter would.

    Matrices are stored as `quant` where the block size divides their rows, vectors as F32.
    """
    config = json.loads((folder / "config.json").read_text())
    arch = _GGUF_ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(path, arch)
    _write_metadata(writer, config)
    _write_vocabulary(writer, json.loads((folder / "tokenizer.json").read_text()))
    heads = {
        "self_attn.q_proj": config["num_attention_heads"],
        "self_attn.k_proj": config["num_key_value_heads"],
    }
    wanted = gguf.GGMLQuantizationType[quant]
    for name, tensor in load_file(folder / "model.safetensors").items():
        module, _, kind = name.removeprefix("model.").rpartition(".")
        prefix = ""
        if module.startswith("layers."):
            _, index, module = module.split(".", 2)
            prefix = f"blk.{index}."
        array = tensor.astype(np.float32)
        if arch == "llama" and module in heads:
            halves = array.reshape(heads[module], 2, -1, *array.shape[1:])
            array = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
        block_size = gguf.GGML_QUANT_SIZES[wanted][0]
        fits = array.ndim == 2 and array.shape[1] % block_size == 0
        stored = wanted if fits else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(array, stored)
        writer.add_tensor(f"{prefix}{_GGUF_NAMES[module]}.{kind}", data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_metadata(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config["rope_parameters"]
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(rope, head_dim))
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
        if "layer_types" in config:
            kinds = config["layer_types"]
            writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in kinds])


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


def truncate(source: Path, target: Path, size: int) -> None:
    """Writes the first `size` bytes of `source` to `target`."""
    target.write_bytes(source.read_bytes()[:size])


def overwrite_u64(path: Path, offset: int, value: int) -> None:
    """Overwrites eight bytes of a file, to forge counts."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, offset, value)
    path.write_bytes(bytes(data))
