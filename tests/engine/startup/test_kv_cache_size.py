"""How many KV blocks an engine gets, and what is refused for lack of memory."""

from __future__ import annotations

import pytest

from sarathi.engine.config import EngineConfig
from sarathi.engine.startup.kv_cache_size import Memory, kv_cache, merge_memories
from sarathi.errors import ConfigError

BLOCK_SIZE = 32
HERE = Memory("here", 50_000, 1000)


def blocks(
    given: int | None, *where: Memory, max_model_len: int = 10**6, max_batch_size: int = 1000
) -> int:
    config = EngineConfig(kv_cache_memory=given, max_batch_size=max_batch_size)
    return kv_cache(config, max_model_len, where or [HERE], BLOCK_SIZE).num_blocks


def test_as_many_blocks_as_the_given_memory_holds() -> None:
    assert blocks(12_999) == 12


def test_half_of_the_free_memory_by_default() -> None:
    assert blocks(None) == 25


def test_engines_on_one_machine_share_it() -> None:
    config = EngineConfig(engines_here=5)
    assert kv_cache(config, 10**6, [HERE], BLOCK_SIZE).num_blocks == 5


def test_all_of_a_memory_that_is_not_shared() -> None:
    assert blocks(None, Memory("GPU 0", 50_000, 1000, shared=False)) == 50


def test_no_more_than_can_ever_be_in_use() -> None:
    assert blocks(10**6, max_model_len=65, max_batch_size=1) == 3


def test_less_than_a_block_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"of 0\.0 MB holds no block of 32 tokens, .* on here;"):
        blocks(999)


def test_the_smallest_memory_decides() -> None:
    assert blocks(None, HERE, Memory("there", 8_000, 500)) == 8
    assert blocks(4_000, HERE, Memory("there", 8_000, 500)) == 4


def test_processes_share_the_memory_of_their_machine() -> None:
    used = [Memory("a", 900, 10), Memory("b", 700, 20), Memory("a", 800, 30)]
    assert merge_memories(used) == (Memory("a", 800, 40), Memory("b", 700, 20))


def test_requests_are_as_long_as_memory_allows() -> None:
    config = EngineConfig(kv_cache_memory=4_000)
    assert kv_cache(config, 1000, [HERE], BLOCK_SIZE).max_model_len == 4 * BLOCK_SIZE
    assert kv_cache(config, 100, [HERE], BLOCK_SIZE).max_model_len == 100


def test_too_little_for_one_request_of_the_length_asked_for_is_refused() -> None:
    config = EngineConfig(kv_cache_memory=4_000, max_model_len=1000)
    with pytest.raises(ConfigError, match=r"128 tokens .* too small .* max_model_len 1000; give"):
        kv_cache(config, 1000, [HERE], BLOCK_SIZE)
