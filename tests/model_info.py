"""What an engine would tell of its model, for tests that have none."""

from __future__ import annotations

from typing import Any

from sarathi.engine.messages import ModelInfo


def model_info(**changes: Any) -> ModelInfo:
    """Of a small model, but for `changes`."""
    facts: dict[str, Any] = {
        "max_model_len": 100,
        "vocab_size": 260,
        "hidden_size": 8,
        "block_size": 16,
        "num_blocks": 50,
        "precision": "f32",
        "kv_precision": "f32",
        "quantization": "none",
        "policy": "sarathi",
        "token_budget": None,
        "tbt_target": 0.1,
        "max_batch_size": 8,
        "order": "fcfs",
        "fair_by": None,
        "deterministic": False,
        "prefix_caching": True,
    }
    return ModelInfo(**{**facts, **changes})
