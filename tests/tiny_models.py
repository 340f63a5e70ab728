"""Tiny checkpoints with random weights, one for each family the decoder supports."""

from __future__ import annotations

import json
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
_FALCON: dict[str, Any] = {
    "head_dim": None,
    "num_key_value_heads": None,
    "intermediate_size": None,
    "tie_word_embeddings": True,
    "initializer_range": 0.4,
}
_LINEAR_ROPE = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
_GEMMA: dict[str, Any] = {"head_dim": 32, "tie_word_embeddings": True, "sliding_window": 12}
_GEMMA3: dict[str, Any] = {
    **_GEMMA,
    "num_hidden_layers": 7,  # the sixth has no window
    "query_pre_attn_scalar": 32,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}

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
    "phi3": ("Phi3", {"head_dim": None}),
    "phi3-sliding": ("Phi3", {"head_dim": None, "sliding_window": 12, "num_key_value_heads": 4}),
    "gemma": ("Gemma", {**_GEMMA, "sliding_window": None}),
    "gemma2": (  # caps that bend scores and logits
        "Gemma2",
        {
            **_GEMMA,
            "query_pre_attn_scalar": 32,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma3": ("Gemma3", _GEMMA3),
    "gemma3-scaled": (
        "Gemma3",
        {
            **_GEMMA3,
            "query_pre_attn_scalar": 16,
            "attention_bias": True,
            "final_logit_softcapping": 5.0,
        },
    ),
    "falcon-7b": ("Falcon", {**_FALCON, "hidden_size": 80, "num_attention_heads": 5}),
    "falcon-40b": (
        "Falcon",
        {
            **_FALCON,
            "hidden_size": 128,
            "num_attention_heads": 8,
            "num_kv_heads": 4,
            "new_decoder_architecture": True,
        },
    ),
    "falcon-180b": (
        "Falcon",
        {
            **_FALCON,
            "hidden_size": 224,
            "num_attention_heads": 14,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "ffn_hidden_size": 160,
            "initializer_range": 0.2,
        },
    ),
    "falcon-11b": (  # the new decoder with a single norm
        "Falcon",
        {
            **_FALCON,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "num_ln_in_parallel_attn": 1,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500042.0},
        },
    ),
    "falcon-serial": (  # as Falcon-RW, without alibi
        "Falcon",
        {**_FALCON, "parallel_attn": False, "multi_query": False, "bias": True},
    ),
}
FAMILIES = tuple(_FAMILIES)
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def save_tiny(family: str, folder: Path, num_layers: int | None = None, **sizes: int) -> None:
    """Saves a float32 checkpoint of `family` with a byte-level tokenizer; always the same one.

    Some `sizes` may differ from those of the other tests.

    Where transformers is not installed, it is another one of the same shape.
    """
    name, changes = _FAMILIES[family]
    settings = {**_SIZES, **changes, **sizes}
    if num_layers is not None:
        settings["num_hidden_layers"] = num_layers
    for absent in ("head_dim", "intermediate_size", "num_key_value_heads"):
        if settings[absent] is None:  # the configuration has no such field
            del settings[absent]
    if find_spec("transformers") is None:  # as on a machine that has a GPU and little else
        _save_random(name, settings, folder)
        save_tokenizer(folder)
        return
    import torch
    import transformers

    kind = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    config = getattr(transformers, kind)(**settings)
    torch.manual_seed(FAMILIES.index(family))
    model = getattr(transformers, f"{name}ForCausalLM")(config).float()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            # The library starts them at 0 and 1, where a forgotten bias or norm goes unnoticed.
            if parameter_name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
            elif "norm" in parameter_name or ".ln_" in parameter_name:
                parameter.uniform_(0.5, 1.5)
                if name.startswith("Gemma"):  # whose norms are stored less 1
                    parameter.sub_(1)
    model.save_pretrained(folder)
    save_tokenizer(folder)


def _save_random(name: str, settings: dict[str, Any], folder: Path) -> None:
    """Saves random tensors under the names of the checkpoints of a family."""
    import numpy as np
    from safetensors.numpy import save_file

    from sarathi.models.decoder import whole_model
    from sarathi.models.families import ARCHITECTURES
    from sarathi.models.formats import huggingface_checkpoint as huggingface
    from sarathi.models.tensor_layout import expected_shapes

    folder.mkdir(parents=True, exist_ok=True)
    architecture = f"{name}ForCausalLM"
    model_type = ARCHITECTURES[architecture].model_type
    fields = {"architectures": [architecture], "model_type": model_type, **settings}
    (folder / "config.json").write_text(json.dumps(fields))
    config = huggingface.read_config(folder)
    names = huggingface.name_map(config)
    rng = np.random.default_rng(0)
    tensors = {}
    for own_name, shape in expected_shapes(config, whole_model(config)).items():
        source = names.find(own_name)
        rows = shape[0] if source.rows is None else source.rows.groups * source.rows.size
        spread = settings["initializer_range"] if source.name.endswith("weight") else 0.3
        tensor = rng.standard_normal((rows, *shape[1:]), np.float32) * np.float32(spread)
        norm = "norm" in source.name or ".ln_" in source.name
        around_1 = norm and len(shape) == 1 and not names.centred_norms
        tensors[source.name] = 1 + tensor if around_1 else tensor
    save_file(tensors, folder / "model.safetensors")


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


def truncate(source: Path, target: Path, size: int) -> None:
    """Writes the first `size` bytes of `source` to `target`."""
    target.write_bytes(source.read_bytes()[:size])


def overwrite_u64(path: Path, offset: int, value: int) -> None:
    """Overwrites eight bytes of a file, to forge counts."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, offset, value)
    path.write_bytes(bytes(data))
