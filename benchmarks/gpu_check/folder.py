"""A model folder without weights: random ones are made where it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sarathi.simulator.model_shape import ModelShape


def write_model_folder(shape: ModelShape, folder: Path) -> Path:
    """Write the `config.json` of a Mistral model of that shape.

    Returns:
        The folder, named after the model.
    """
    path = folder / shape.name
    path.mkdir(parents=True)
    config: dict[str, Any] = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_position,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "sliding_window": None,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (path / "config.json").write_text(json.dumps(config, indent=1))
    return path
