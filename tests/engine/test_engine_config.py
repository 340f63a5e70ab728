"""What an `EngineConfig` refuses, however it was put together."""

from __future__ import annotations

from typing import Any

import pytest

from sarathi.engine.config import EngineConfig
from sarathi.engine.startup.load import executor_options
from sarathi.errors import ConfigError

MOST = {
    "token_budget": 2**31 - 1,
    "max_batch_size": 2**31 - 1,
    "max_model_len": 2**31 - 1,
    "threads": 2**31 - 1,
    "kv_cache_memory": 2**62,
}


def options(name: str, value: int) -> dict[str, Any]:
    return {name: value}


@pytest.mark.parametrize("name", MOST)
def test_whole_numbers_have_both_ends(name: str) -> None:
    for accepted in (1, MOST[name]):
        assert getattr(EngineConfig(**options(name, accepted)), name) == accepted
    for refused in (0, MOST[name] + 1):
        with pytest.raises(
            ConfigError, match=f"{name} is {refused}, expected an integer at least 1"
        ):
            EngineConfig(**options(name, refused))


def test_what_has_no_effect_is_refused() -> None:
    with pytest.raises(ConfigError, match="ttft_target has no effect on the order fcfs"):
        EngineConfig(ttft_target=2.0)
    for on_cpus in ({"executor": "openvino"}, {"executor": "torch", "device": "cpu"}):
        with pytest.raises(ConfigError, match="gpu_memory_utilization has no effect on CPUs"):
            EngineConfig(gpu_memory_utilization=0.5, **on_cpus)  # type: ignore[arg-type]


def test_only_one_backend_has_a_choice_of_kernels() -> None:
    assert executor_options(EngineConfig(kernels="native"), 128).kernels == "native"
    with pytest.raises(ConfigError, match="kernels is plugin, expected auto"):
        EngineConfig(executor="torch", kernels="plugin")


def test_part_of_the_memory_of_gpus_reaches_the_executor() -> None:
    config = EngineConfig(executor="torch", gpu_memory_utilization=0.5)
    assert executor_options(config, 128).gpu_memory_utilization == 0.5
