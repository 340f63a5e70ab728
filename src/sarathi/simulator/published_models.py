"""Models that can be named, as the config.json that each was published with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sarathi.errors import ModelError
from sarathi.simulator.simulated_model import SimulatedModel
from sarathi.system.cache_folder import cache_folder, replace_file


def llama_fields(
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    intermediate: int,
    vocab: int,
    max_position: int,
    tied: bool = False,
) -> dict[str, Any]:
    """Return the config.json of a Llama.

    Args:
        tied: whether the embedding and the head have the same weights.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "max_position_embeddings": max_position,
        "head_dim": hidden // heads,
        "tie_word_embeddings": tied,
    }


def _falcon(layers: int, hidden: int, heads: int, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "vocab_size": 65024,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": tied,
        "head_dim": 64,
        "num_kv_heads": 8,
        "ffn_hidden_size": 4 * hidden,
        "new_decoder_architecture": True,
        "num_ln_in_parallel_attn": 2,
    }


# Models that differ from Llama only in small things, such as biases, are Llamas here: they cost the
# same. Falcon-180B's published number of parameters, 179.5 billion, is that of a head of its own.
MODELS: Mapping[str, SimulatedModel] = {
    name: SimulatedModel.from_fields(name, fields)
    for name, fields in {
        # Instruct v0.2, without a window.
        "mistral-7b": llama_fields(32, 4096, 32, 8, 14336, 32000, 32768),
        "yi-34b": llama_fields(60, 7168, 56, 8, 20480, 64000, 200000),  # the one with 200K
        "llama2-70b": llama_fields(80, 8192, 64, 8, 28672, 32000, 4096),
        "falcon-180b": _falcon(80, 14848, 232, tied=False),
        "llama2-7b": llama_fields(32, 4096, 32, 32, 11008, 32000, 4096),
        "llama2-13b": llama_fields(40, 5120, 40, 40, 13824, 32000, 4096),
        "llama3-8b": llama_fields(32, 4096, 32, 8, 14336, 128256, 8192),
        "llama3-70b": llama_fields(80, 8192, 64, 8, 28672, 128256, 8192),
        "codellama-34b": llama_fields(48, 8192, 64, 8, 22016, 32000, 16384),
        "qwen2.5-7b": llama_fields(28, 3584, 28, 4, 18944, 152064, 32768),
        "qwen2.5-72b": llama_fields(80, 8192, 64, 8, 29568, 152064, 32768),
        "falcon-40b": _falcon(60, 8192, 128, tied=True),
        "smollm2-135m": llama_fields(30, 576, 9, 3, 1536, 49152, 8192, tied=True),
    }.items()
}


def config_folder(model: SimulatedModel) -> Path:
    """Write the config.json of a model into a folder of its name in the cache.

    So everything that takes the path of a model takes this one, in other processes, too.

    Raises:
        ModelError: it cannot be written.
    """
    folder = cache_folder() / "dummy" / model.name
    try:
        replace_file(folder / "config.json", json.dumps(dict(model.fields), indent=2).encode())
    except OSError as error:
        raise ModelError(f"cannot write {folder}/config.json: {error.strerror}") from error
    return folder
