"""From flags to `EngineConfig`."""

from __future__ import annotations

from pathlib import Path

import pytest

from sarathi.cli.arguments import parse_options
from sarathi.engine.config import EngineConfig


def config(*flags: str) -> EngineConfig:
    return parse_options(EngineConfig, flags)


def test_without_flags_all_is_as_in_the_configs_defaults() -> None:
    assert config() == EngineConfig()


def test_every_flag_of_the_scheduler_reaches_the_config() -> None:
    found = config(
        *("--tbt-target", "100ms", "--min-prefill-share", "0.25", "--in-order-share", "1"),
        *("--order", "slack", "--ttft-target", "2s", "--fair-by", "tenant", "--deterministic"),
        *("--no-enable-prefix-caching", "--max-batch-size", "7"),
    )
    assert found == EngineConfig(
        tbt_target=0.1,
        min_prefill_share=0.25,
        in_order_share=1.0,
        order="slack",
        ttft_target=2.0,
        fair_by="tenant",
        deterministic=True,
        prefix_caching=False,
        max_batch_size=7,
    )


def test_the_papers_fixed_budget() -> None:
    assert config("--token-budget", "64") == EngineConfig(token_budget=64)


def test_a_bare_number_is_seconds() -> None:
    assert config("--tbt-target", "0.1").tbt_target == 0.1


def test_log_and_trace_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = config("--iteration-log", "log.jsonl", "--trace", str(tmp_path / "trace.json"))
    assert found.iteration_log == str(tmp_path / "log.jsonl")
    assert found.trace == str(tmp_path / "trace.json")
