"""How an engine is run, in words."""

from __future__ import annotations

from sarathi.engine.config import EngineConfig


def engine_options(config: EngineConfig, max_model_len: int) -> dict[str, str]:
    """As they would be typed."""
    options = {
        "policy": config.policy,
        "max-batch-size": str(config.max_batch_size),
        "max-model-len": str(max_model_len),
    }
    if config.fixed_budget is not None:
        options["token-budget"] = str(config.fixed_budget)
    if config.latency_budget and config.tbt_target is not None:
        options["tbt-target"] = f"{config.tbt_target:g}"
    if config.order != "fcfs":
        options["order"] = config.order
    return options
