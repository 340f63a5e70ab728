"""How a step is cut into work items, without the kernels that compute them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi.backends.torch.attention_plan import (
    DECODE,
    KV_END,
    KV_START,
    NUM_SPLITS,
    NUM_TOKENS,
    PREFILL,
    AttentionPlanner,
    AttentionShape,
    AttentionWork,
    select_config,
)

SHAPES = [
    AttentionShape(*shape)
    for shape in ((8, 8, 64), (8, 2, 128), (14, 2, 80), (71, 1, 64), (32, 8, 256))
]
planners = st.builds(
    AttentionPlanner.make,
    shape=st.sampled_from(SHAPES),
    itemsize=st.sampled_from([2, 4]),
    num_sms=st.sampled_from([1, 8, 44, 132, 1000]),
    deterministic=st.booleans(),
    max_context=st.sampled_from([512, 4096, 100_000]),
)
windows = st.sampled_from([0, 1, 100, 1000])
# Tokens new and cached of each sequence.
lengths = st.lists(
    st.tuples(st.one_of(st.just(1), st.integers(1, 600)), st.integers(0, 5000)),
    min_size=1,
    max_size=30,
)


def arrays(lengths: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Query starts and contexts."""
    new, past = np.array(lengths, np.int32).T
    return np.concatenate([[0], np.cumsum(new)]).astype(np.int32), new + past


def check_work(
    work: AttentionWork, planner: AttentionPlanner, starts: np.ndarray, contexts: np.ndarray
) -> None:
    """Assert that every visible (token, key) pair is in one item, and that partial rows and
    merges fit each other."""
    new = np.diff(starts)
    positions = np.concatenate([np.arange(c - n, c) for n, c in zip(new, contexts, strict=True)])
    group, config, window = planner.shape.group_size, work.config, work.window
    num_keys = np.zeros(len(positions), np.int64)
    num_partials = np.zeros(len(positions), np.int64)
    partial_rows: list[int] = []
    ranges: dict[int, list[tuple[int, int]]] = {}
    for token, num_tokens, position, sequence, start, end, row, kind in work.items.tolist():
        own = np.arange(token, token + num_tokens)
        assert starts[sequence] <= token
        assert token + num_tokens <= starts[sequence + 1]
        assert (positions[own] == position + np.arange(num_tokens)).all()
        assert num_tokens * group <= {PREFILL: config.prefill, DECODE: config.decode}[kind].rows
        assert (kind == DECODE) == (new[sequence] * group <= config.decode.rows)
        assert start % config.key_alignment == 0
        assert start < end
        ranges.setdefault(token, []).append((start, end))
        oldest = np.maximum(positions[own] - window + 1, 0) if window else 0
        newest = np.minimum(end, positions[own] + 1)
        num_keys[own] += np.maximum(newest - np.maximum(start, oldest), 0)
        if row >= 0:
            partial_rows.extend(range(row, row + num_tokens))
            num_partials[own] += 1
    for each in ranges.values():
        each.sort()
        assert all(a[1] == b[0] for a, b in pairwise(each))
    assert (num_keys == (np.minimum(positions + 1, window) if window else positions + 1)).all()
    assert sorted(partial_rows) == list(range(work.num_partial_rows))
    merged = [row + i * stride for _, row, stride, n in work.merges.tolist() for i in range(n)]
    assert sorted(merged) == sorted(partial_rows)
    splits = {token: n for token, _, _, n in work.merges.tolist()}
    assert splits == {token: n for token, n in enumerate(num_partials.tolist()) if n}


class TestPlan:
    @settings(max_examples=60, deadline=None)
    @given(planner=planners, lengths=lengths, window=windows)
    def test_every_key_of_every_token_is_covered_once(self, planner, lengths, window) -> None:
        starts, contexts = arrays(lengths)
        work = planner.plan(starts, contexts, window)
        check_work(work, planner, starts, contexts)
        kinds = set(work.items[:, -1].tolist())
        assert work.has_prefill or PREFILL not in kinds
        assert work.has_decode or DECODE not in kinds

    @settings(max_examples=60, deadline=None)
    @given(
        planner=planners,
        contexts=st.lists(st.integers(1, 8192), min_size=1, max_size=40),
        window=windows,
    )
    def test_decodes_fit_the_shapes_of_a_graph(self, planner, contexts, window) -> None:
        count = len(contexts)
        contexts = np.array(contexts, np.int32)
        exact = planner.plan(np.arange(count + 1, dtype=np.int32), contexts, window)
        work = planner.plan_decodes(contexts, window, max_context=8192)
        other = planner.plan_decodes(np.ones_like(contexts), window, max_context=8192)
        assert work.items.shape == other.items.shape
        assert work.merges.shape == other.merges.shape
        assert work.num_partial_rows == other.num_partial_rows >= exact.num_partial_rows
        assert (work.config, work.has_prefill, work.has_decode) == (
            other.config,
            other.has_prefill,
            other.has_decode,
        )
        assert np.array_equal(work.items[: len(exact.items)], exact.items)
        assert not work.items[len(exact.items) :].any()
        assert np.array_equal(work.merges[: len(exact.merges)], exact.merges)
        assert not work.merges[len(exact.merges) :].any()

    @pytest.mark.parametrize("num_decodes", [1, 8, 128])
    def test_splits_fill_the_device(self, num_decodes: int) -> None:
        shape, num_sms = AttentionShape(32, 8, 128), 132
        planner = AttentionPlanner.make(shape, 2, num_sms)
        starts, contexts = arrays([(1, 8191)] * num_decodes)
        work = planner.plan(starts, contexts, 0)
        assert shape.num_kv_heads * len(work.items) >= num_sms
        assert (work.items[:, KV_END] - work.items[:, KV_START]).min() >= 256

    def test_a_chunk_that_fills_the_device_is_not_split(self) -> None:
        planner = AttentionPlanner.make(AttentionShape(32, 8, 128), 2, num_sms=132)
        starts, contexts = arrays([(512, 8192)])
        assert not len(planner.plan(starts, contexts, 0).merges)

    def test_a_short_chunk_at_great_depth_is_split(self) -> None:
        planner = AttentionPlanner.make(AttentionShape(32, 8, 128), 2, num_sms=132)
        starts, contexts = arrays([(32, 16384)])
        work = planner.plan(starts, contexts, 0)
        assert len(work.items) > 8
        assert (work.merges[:, NUM_SPLITS] == len(work.items)).all()

    def test_long_items_come_first(self) -> None:
        planner = AttentionPlanner.make(AttentionShape(32, 8, 128), 2, num_sms=132)
        starts, contexts = arrays([(1, 300), (1, 2000), (1, 20), (1, 1000)])
        items = planner.plan(starts, contexts, 0).items
        assert (np.diff(items[:, KV_END] - items[:, KV_START]) <= 0).all()


class TestDeterministic:
    @settings(max_examples=40, deadline=None)
    @given(lengths=lengths, window=windows, shape=st.sampled_from(SHAPES))
    def test_a_sequence_is_cut_alike_in_every_batch(self, lengths, window, shape) -> None:
        planner = AttentionPlanner.make(shape, 2, 132, deterministic=True, max_context=8192)
        work = planner.plan(*arrays(lengths), window)
        alone = planner.plan(*arrays(lengths[:1]), window)
        columns = [NUM_TOKENS, 2, KV_START, KV_END, -1]
        mine = work.items[work.items[:, 3] == 0][:, [0, *columns]]
        assert sorted(mine.tolist()) == sorted(alone.items[:, [0, *columns]].tolist())
        assert (work.config, work.has_prefill, work.has_decode) == (
            alone.config,
            alone.has_prefill,
            alone.has_decode,
        )

    def test_long_contexts_have_larger_splits(self) -> None:
        shape = AttentionShape(32, 8, 128)
        for max_context in (512, 8192, 131_072):
            planner = AttentionPlanner.make(
                shape, 2, 132, deterministic=True, max_context=max_context
            )
            assert planner.max_items(1, max_context) <= 16


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("head_dim", [8, 64, 96, 128, 256])
@pytest.mark.parametrize("heads", [(8, 8), (12, 4), (32, 8), (14, 2), (71, 1)])
def test_tiles_hold_a_group_and_keys_a_block(heads, head_dim, itemsize) -> None:
    shape = AttentionShape(heads[0], heads[1], head_dim)
    for decode_only in (False, True):
        config = select_config(shape, itemsize, decode_only=decode_only)
        for tile in (config.prefill, config.decode):
            assert tile.rows >= max(16, shape.group_size)
            assert shape.block_size % tile.keys == 0
            assert config.key_alignment % tile.keys == 0
