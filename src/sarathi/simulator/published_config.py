"""A config.json for a model of which only the shape is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sarathi.errors import ModelError
from sarathi.simulator.model_shape import ModelShape
from sarathi.system.cache_folder import cache_folder, replace_file


def published_config(shape: ModelShape) -> dict[str, Any]:
    """Return the fields of a Hugging Face config.json that describe `shape`.

    Models that differ from Llama only in small things, such as biases, become Llama: what they
    cost is the same.
    """
    common = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_position,
        "tie_word_embeddings": shape.tied,
    }
    if shape.parallel:
        return {
            "architectures": ["FalconForCausalLM"],
            "model_type": "falcon",
            **common,
            "num_kv_heads": shape.kv_heads,
            "ffn_hidden_size": shape.intermediate,
            "new_decoder_architecture": True,
            "num_ln_in_parallel_attn": shape.norms,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **common,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
    }


def config_folder(shape: ModelShape) -> Path:
    """Write the config.json of `shape` into a folder of its name in the cache.

    So whatever takes the path of a model takes this one, in other processes, too.

    Raises:
        ModelError: it cannot be written.
    """
    folder = cache_folder() / "dummy" / shape.name
    try:
        text = json.dumps(published_config(shape), indent=2)
        replace_file(folder / "config.json", text.encode())
    except OSError as error:
        raise ModelError(f"cannot write {folder}/config.json: {error.strerror}") from error
    return folder
