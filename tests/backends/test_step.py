"""The arrays of a step, and the refusal of those that native code must never see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarathi.backends.step import Step, StepError, build_step, check_step
from sarathi.scheduler import BlockPool, FixedBudget, Request, Scheduler, StopCriteria


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


# A decode at position 5 in blocks 7 and 2, and a prompt of three tokens in block 0.
GOOD = Step(
    token_ids=np.array([9, 1, 2, 3]),
    positions=np.array([5, 0, 1, 2]),
    query_starts=i32(0, 1, 4),
    past_lens=i32(5, 0),
    block_ids=i32(7, 2, 0),
    block_starts=i32(0, 2, 3),
    sample_rows=np.array([0, 3]),
)


def check(step: Step) -> None:
    check_step(step, num_blocks=8, block_size=4, vocab_size=10, max_position=6)


def test_a_batch_becomes_arrays() -> None:
    scheduler = Scheduler(BlockPool(8, 4), FixedBudget(7), max_batch_size=4, max_model_len=100)
    first = Request(1, [10, 11, 12, 13, 14], StopCriteria(9), 1.0)
    second = Request(2, [20, 21, 22, 23, 24, 25, 26, 27], StopCriteria(9), 2.0)
    scheduler.add(first)
    batch = scheduler.schedule(0.0)
    assert batch is not None
    scheduler.complete(batch, [15], 0.0)
    scheduler.add(second)
    batch = scheduler.schedule(0.0)
    assert batch is not None
    step = build_step(batch, 4)
    assert step.token_ids.tolist() == [15, 20, 21, 22, 23, 24, 25]
    assert step.positions.tolist() == [5, 0, 1, 2, 3, 4, 5]
    assert step.query_starts.tolist() == [0, 1, 7]
    assert step.past_lens.tolist() == [5, 0]
    assert step.block_starts.tolist() == [0, 2, 4]
    assert step.block_ids.tolist() == first.blocks + second.blocks
    assert step.sample_rows.tolist() == [0]
    assert step.max_context_len == 6
    check_step(step, num_blocks=8, block_size=4, vocab_size=30, max_position=100)


def test_a_good_step_passes() -> None:
    check(GOOD)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": np.array([9, 1, 2, 10])}, "token_ids holds 1..10, expected 0..9"),
        ({"token_ids": np.array([9, 1, 2, -1])}, "token_ids"),
        ({"token_ids": np.array([9, 1, 2])}, "3 tokens at 4 positions"),
        ({"positions": np.array([6, 0, 1, 2])}, "positions"),
        ({"positions": np.array([5, 0, 1])}, "4 tokens at 3 positions"),
        ({"query_starts": i32(0, 1, 5)}, "query_starts"),
        ({"query_starts": i32(1, 1, 4)}, "query_starts"),
        ({"query_starts": i32(0, 4, 4)}, "query_starts"),
        ({"query_starts": i32(0, 4)}, "2 sequences with 1 queries"),
        ({"past_lens": i32(5, -1)}, "negative"),
        ({"past_lens": i32(8, 0)}, "do not match"),
        ({"block_ids": i32(8, 2, 0)}, "block_ids"),
        ({"block_ids": i32(7, -2, 0)}, "block_ids"),
        ({"block_ids": i32(7, 2)}, "block_starts"),
        ({"block_starts": i32(0, 1, 3)}, "do not match"),
        ({"block_starts": i32(0, 3)}, "block tables"),
        ({"sample_rows": np.array([0, 4])}, "sample_rows"),
    ],
)
def test_a_malformed_step_is_refused(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(StepError, match=message):
        check(replace(GOOD, **change))


def test_a_step_without_sequences_is_refused() -> None:
    none = np.zeros(0, np.int64)
    empty = Step(none, none, i32(0), i32(), i32(), i32(0), none)
    with pytest.raises(StepError, match="0 sequences"):
        check(empty)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=6),
    st.integers(1, 20),
)
def test_whatever_is_scheduled_passes(requests: list[tuple[int, int]], budget: int) -> None:
    scheduler = Scheduler(
        BlockPool(30, 4), FixedBudget(budget), max_batch_size=4, max_model_len=100
    )
    for name, (prompt, output) in enumerate(requests):
        scheduler.add(Request(name, range(prompt), StopCriteria(output), 0.0))
    while scheduler.has_work:
        batch = scheduler.schedule(0.0)
        assert batch is not None
        if batch.slices:
            step = build_step(batch, 4)
            check_step(step, num_blocks=30, block_size=4, vocab_size=40, max_position=100)
            assert step.token_ids.shape == step.positions.shape == (batch.num_tokens,)
        scheduler.complete(batch, [1] * len(batch.sampling), 0.0)
