from __future__ import annotations

import pytest

from sarathi.engine import memory
from sarathi.engine.config import ConfigError
from sarathi.engine.memory import num_kv_blocks


def blocks(given: int | None, max_tokens: int = 10**9) -> int:
    return num_kv_blocks(block_bytes=1000, block_size=32, memory=given, max_tokens=max_tokens)


def test_as_many_blocks_as_the_given_memory_holds() -> None:
    assert blocks(12_999) == 12


def test_half_of_what_is_free_if_nothing_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 50_000)
    assert blocks(None) == 25


def test_no_more_than_can_ever_be_in_use() -> None:
    assert blocks(10**6, max_tokens=65) == 3


def test_less_than_a_block_is_refused() -> None:
    with pytest.raises(ConfigError, match="holds no block"):
        blocks(999)
