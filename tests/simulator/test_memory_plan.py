from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi.errors import SimulationError
from sarathi.simulator.setup import GIB, kv_blocks
from tests.simulator.deployments import deployment


@pytest.mark.parametrize(
    ("model", "device", "tp", "pp", "weights"),
    [
        ("mistral-7b", "a100", 1, 1, 7.24e9 * 2),
        ("yi-34b", "a100-pairwise", 2, 1, 34.4e9),
        ("llama2-70b", "a40", 4, 2, 69.0e9 * 2 / 8),
        ("falcon-180b", "a100-pairwise", 4, 2, 179.5e9 * 2 / 8),
    ],
)
def test_the_papers_deployments_fit(
    model: str, device: str, tp: int, pp: int, weights: float
) -> None:
    where = deployment(model, device, tp=tp, pp=pp, max_model_len=16384)
    plan = kv_blocks(where, 2048)
    assert len(plan.stages) == pp
    for stage in plan.stages:
        assert stage.weights == pytest.approx(weights, rel=0.01)
        used = stage.weights + stage.activations + plan.blocks * stage.block
        assert used <= where.device.memory * 0.9
    assert plan.blocks == min(stage.blocks for stage in plan.stages)


def test_a_block_holds_keys_and_values_of_its_tokens() -> None:
    (stage,) = kv_blocks(deployment(), 512, block_size=32).stages
    assert stage.block == 32 * 32 * 2 * 8 * 128 * 2  # tokens, layers, both, heads, width, bytes


def test_workers_beyond_the_key_value_heads_hold_copies() -> None:
    four = kv_blocks(deployment("qwen2.5-7b", tp=4), 512).stages[0]
    assert four.block == 16 * 28 * 2 * 1 * 128 * 2
    seven = deployment("qwen2.5-7b", tp=2)
    assert seven.kv_heads == 2


def test_what_does_not_fit_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(SimulationError) as refused:
        kv_blocks(deployment("llama2-70b", "a40"), 512)
    message = str(refused.value)
    assert "llama2-70b TP1 on A40-48G does not fit" in message
    assert "44.40 GiB x 0.9 = 39.96 GiB - weights 128.48" in message


def test_a_request_that_the_cache_cannot_hold_is_refused() -> None:
    with pytest.raises(SimulationError, match="max_model_len") as refused:
        kv_blocks(deployment("mistral-7b", "l4", max_model_len=65536), 512)
    message = str(refused.value)
    assert "takes 4096" in message
    most = int(message.split("at most ")[1].split()[0])
    fits = deployment("mistral-7b", "l4", max_model_len=most)
    assert kv_blocks(fits, 512).blocks * 16 == most


def test_two_stages_are_listed_separately() -> None:
    plan = kv_blocks(deployment("llama2-70b", "a40", tp=4, pp=2), 512)
    first, last = plan.text.splitlines()
    assert first.startswith("stage 0: ")
    assert last.endswith(f"= {plan.blocks} blocks")


def test_a_tied_table_is_held_once_by_one_stage_and_twice_by_two() -> None:
    table = 49152 * 576 * 2
    (one,) = kv_blocks(deployment("smollm2-135m"), 512).stages
    two = kv_blocks(deployment("smollm2-135m", pp=2), 512).stages
    assert sum(stage.weights for stage in two) == one.weights + table


@pytest.mark.parametrize("field", ["max_batched_tokens", "block_size", "max_sequences"])
def test_numbers_must_be_positive(field: str) -> None:
    numbers = {"max_batched_tokens": 512, field: 0}
    with pytest.raises(SimulationError, match=f"{field} is 0, expected at least 1"):
        kv_blocks(deployment(), **numbers)


@given(st.integers(1, 16384), st.integers(1, 4096))
def test_more_tokens_at_once_leave_fewer_blocks(tokens: int, more: int) -> None:
    few = kv_blocks(deployment(), tokens + more).blocks
    assert few <= kv_blocks(deployment(), tokens).blocks
    assert 50 < kv_blocks(deployment(), tokens).stages[0].cache / GIB < 60
