"""The attention kernels against float64, and the attention made of them."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from sarathi.backends.step import StepPart, join_parts
from sarathi.backends.torch.attention_backend import LayerCache, check_attention, choose_attention
from sarathi.backends.torch.attention_plan import (
    KV_START,
    AttentionPlanner,
    AttentionShape,
    KernelConfig,
    Tile,
)
from sarathi.backends.torch.step_inputs import StepArrays, padded, step_arrays, upload
from sarathi.backends.torch.triton_attention import TritonAttention
from sarathi.errors import ExecutorError
from sarathi.models.model_config import ModelConfig
from tests.kernels.paged_batch import PagedBatch

# The interpreter multiplies matrices of bfloat16 as if they were integers.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HALF = torch.bfloat16 if torch.cuda.is_available() and not INTERPRETED else torch.float16
# Tokens new and cached of each sequence.
HYBRID = ((37, 0), (1, 70), (20, 45), (1, 0), (3, 61), (1, 200))
DECODES = ((1, 0), (1, 15), (1, 16), (1, 129), (1, 300))
# So small that short batches have several items of both kinds. Tests share shapes where they can:
# a GPU compiles a kernel for each.
SMALL = KernelConfig(Tile(32, 16, 2), Tile(16, 16, 2), 4, None, decodes_per_sm=1)
LONG = replace(SMALL, prefill=Tile(32, 64, 2), decode=Tile(16, 64, 2))  # of keys


def planner(
    shape: AttentionShape, config: KernelConfig = SMALL, num_sms: int = 1, **options: int
) -> AttentionPlanner:
    return AttentionPlanner(shape, config, config, num_sms, **options)


def model_config(
    heads: tuple[int, int] = (4, 2), head_dim: int = 16, windows: tuple[int, ...] = (0,)
) -> ModelConfig:
    return ModelConfig(
        architecture="Llama",
        vocab_size=8,
        hidden_size=heads[0] * head_dim,
        intermediate_size=8,
        num_layers=len(windows),
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=head_dim,
        norm_eps=1e-5,
        max_position=4096,
        inv_freq=(1.0,) * (head_dim // 2),
        sliding_windows=windows,
    )


class TestKernels:
    @pytest.mark.parametrize("lengths", [HYBRID, DECODES, ((40, 0), (33, 50))])
    @pytest.mark.parametrize(
        ("heads", "block_size"), [((2, 2), 16), ((3, 1), 64), ((8, 1), 32)], ids=str
    )
    def test_batches(self, device, heads, block_size, lengths) -> None:
        shape = AttentionShape(heads[0], heads[1], 32, block_size)
        batch = PagedBatch(lengths, shape, device, HALF)
        batch.check(batch.compute(batch.plan(planner(shape))))

    @pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
    @pytest.mark.parametrize(
        ("heads", "window"), [((2, 2), 0), ((6, 2), 33), ((4, 1), 500), ((8, 1), 0)], ids=str
    )
    def test_random_batches(self, device, heads, window, dtype) -> None:
        """Chunks of up to 300 tokens, contexts of up to 4096, decodes among them."""
        rng = np.random.default_rng([*heads, window, dtype.itemsize])
        lengths = [(int(rng.integers(1, 300)), int(rng.integers(0, 1000)))]
        for _ in range(rng.integers(1, 4)):
            new = int(rng.choice([1, 1, int(rng.integers(2, 40))]))
            lengths.append((new, int(rng.integers(0, 4096 - new))))
        rng.shuffle(lengths)
        shape = AttentionShape(heads[0], heads[1], 16)
        batch = PagedBatch(lengths, shape, device, dtype, seed=heads[0])
        config = KernelConfig(Tile(128, 64, 2), Tile(16, 64, 3), 8, None, decodes_per_sm=1)
        work = batch.plan(planner(shape, config, num_sms=8), window)
        batch.check(batch.compute(work), window)

    @pytest.mark.parametrize("head_dim", [8, 80, 96])
    def test_head_sizes_that_are_padded(self, device, head_dim) -> None:
        shape = AttentionShape(2, 1, head_dim, 16)
        batch = PagedBatch(((18, 13), (1, 40)), shape, device, HALF)
        batch.check(batch.compute(batch.plan(planner(shape))))

    @pytest.mark.parametrize("decode_only", [False, True])
    @pytest.mark.parametrize(
        ("head_dim", "dtype"),
        [(64, HALF), (128, HALF), (256, HALF), (256, torch.float32)],
        ids=str,
    )
    def test_tiles_in_use(self, device, head_dim, decode_only, dtype) -> None:
        shape = AttentionShape(4, 1, head_dim)
        lengths = ((1, 700), (1, 63)) if decode_only else ((40, 30), (1, 600))
        batch = PagedBatch(lengths, shape, device, dtype)
        work = batch.plan(AttentionPlanner.make(shape, dtype.itemsize, num_sms=4))
        assert work.has_prefill != decode_only
        assert len(work.merges)
        batch.check(batch.compute(work))

    @pytest.mark.parametrize(("window", "num_sms"), [(1, 1), (7, 20), (16, 1), (40, 20), (1000, 1)])
    def test_windows(self, device, window, num_sms) -> None:
        shape = AttentionShape(2, 1, 32, 16)
        batch = PagedBatch(HYBRID, shape, device)
        work = batch.plan(planner(shape, num_sms=num_sms), window)
        batch.check(batch.compute(work), window)

    def test_keys_before_the_window_are_not_read(self, device) -> None:
        shape = AttentionShape(2, 1, 32, 16)
        batch = PagedBatch(((1, 200),), shape, device)
        work = batch.plan(planner(shape), window=10)
        assert (work.items[:, KV_START] == 176).all()
        batch.forget(0, num_blocks=11)
        batch.check(batch.compute(work), window=10)

    @pytest.mark.parametrize(("window", "split"), [(0, 16), (0, 64), (50, 16)])
    def test_splits(self, device, window, split) -> None:
        """More of them than are merged at a time, and some whose keys a row does not see."""
        shape = AttentionShape(2, 1, 32, 16)
        # Positions 63 to 65: keys from 64 on are a split that the first row sees nothing of.
        batch = PagedBatch((*DECODES, (3, 63)), shape, device)
        work = batch.plan(planner(shape, fixed_split=split), window)
        assert len(work.merges)
        batch.check(batch.compute(work), window)

    def test_splits_of_prefill_tiles(self, device) -> None:
        shape = AttentionShape(2, 1, 32, 16)
        batch = PagedBatch(((20, 2000), (1, 10)), shape, device, HALF)
        work = batch.plan(planner(shape, LONG, num_sms=8))
        assert len(work.merges) == 20
        batch.check(batch.compute(work))

    def test_soft_cap_and_sinks(self, device) -> None:
        """With sequences whose keys are split, and others."""
        shape = AttentionShape(4, 2, 32, 16)
        batch = PagedBatch(HYBRID[1:5], shape, device)
        sinks = torch.tensor([0.5, -1.0, 2.0, 4.0])
        work = batch.plan(planner(shape, fixed_split=32))
        batch.check(batch.compute(work, soft_cap=3.0, sinks=sinks), soft_cap=3.0, sinks=sinks)
        batch.check(batch.compute(work, soft_cap=3.0), soft_cap=3.0)

    def test_keys_of_an_iteration_out_of_several_blocks(self, device) -> None:
        shape = AttentionShape(2, 1, 32, 16)
        batch = PagedBatch(HYBRID, shape, device, HALF)
        batch.check(batch.compute(batch.plan(planner(shape, LONG))))

    @pytest.mark.parametrize("heads", [(7, 1), (24, 1)], ids=str)
    def test_large_groups(self, device, heads) -> None:
        config = replace(SMALL, prefill=Tile(64, 16, 2), decode=Tile(32, 16, 2))
        shape = AttentionShape(heads[0], heads[1], 32, 16)
        batch = PagedBatch(((10, 5), (1, 30)), shape, device, HALF)
        batch.check(batch.compute(batch.plan(planner(shape, config))))

    def test_a_padded_grid(self, device) -> None:
        """As in a CUDA graph: items and merges of the same shape for every step."""
        shape = AttentionShape(2, 1, 16, 64)
        plans = planner(shape, replace(SMALL, decode=Tile(16, 64, 2)), num_sms=8)
        shapes = set()
        for seed, extra in enumerate((0, 700)):
            batch = PagedBatch([(1, past + extra) for _, past in DECODES], shape, device, seed=seed)
            work = plans.plan_decodes(batch.contexts, 0, max_context=1024)
            shapes.add((work.items.shape, work.merges.shape, work.num_partial_rows))
            batch.check(batch.compute(work))
        assert len(shapes) == 1


class TestAttention:
    @pytest.mark.parametrize(
        ("dtype", "deterministic", "windows"),
        [
            (torch.float32, False, (0,)),
            (torch.float16, False, (0, 100)),
            (torch.float16, True, (0,)),
        ],
        ids=str,
    )
    def test_it_passes_the_check(self, device, dtype, deterministic, windows) -> None:
        config = model_config((2, 1), windows=windows)
        attention = choose_attention(config, dtype, device, deterministic)
        assert isinstance(attention, TritonAttention)
        check_attention(attention, config, dtype, device)

    def test_the_check_notices_a_wrong_merge(self, device) -> None:
        config, dtype = model_config((2, 1)), torch.float16

        class Wrong(TritonAttention):
            def prepare(self, arrays: StepArrays, *, fixed_shape: bool = False) -> StepArrays:
                arrays = super().prepare(arrays, fixed_shape=fixed_shape)
                work = [replace(each, merges=0 * each.merges) for each in arrays.work]
                return replace(arrays, work=tuple(work))

        with pytest.raises(ExecutorError, match="self-check failed: attention"):
            check_attention(Wrong(config, dtype, device), config, dtype, device)

    @pytest.mark.parametrize("head_dim", [12, 264])
    def test_head_sizes_it_does_not_accept(self, device, head_dim) -> None:
        with pytest.raises(ExecutorError, match=f"head size {head_dim}: .* multiples of 8 up to"):
            TritonAttention(model_config(head_dim=head_dim), torch.float16, device)

    def test_the_interpreter_does_not_accept_bf16(self) -> None:
        with pytest.raises(ExecutorError, match="precision bf16"):
            TritonAttention(model_config(), torch.bfloat16, torch.device("cpu"))

    @pytest.mark.parametrize("deterministic", [False, True])
    def test_new_inputs_at_the_same_addresses(self, device, deterministic) -> None:
        """As for a graph: arrays of another step are copied over those of the plan."""
        config, dtype = model_config((2, 1), windows=(0, 70)), torch.float16
        attention = TritonAttention(config, dtype, device, deterministic=deterministic)
        size, width = attention.block_size, 14
        torch.manual_seed(0)
        blocks = (3 * width + 1, size, 1, 16)
        cache = LayerCache(*(torch.randn(blocks, dtype=dtype, device=device) for _ in range(2)))
        query = torch.randn((4, 2, 16), dtype=dtype, device=device)

        def decodes(*contexts: int) -> StepArrays:
            parts = [
                StepPart([1], context - 1, range(width * i, width * (i + 1)), samples=True)
                for i, context in enumerate(contexts)
            ]
            arrays = step_arrays(join_parts(parts, size), size)
            return padded(arrays, size=4, width=width, block_size=size, spare_block=3 * width)

        first, second = decodes(3, 2 * size), decodes(size + 1, 5, width * size)
        prepared = attention.prepare(first, fixed_shape=True)
        inputs = upload(prepared, device)
        planned = attention.plan(prepared, inputs)
        update = upload(attention.prepare(second, fixed_shape=True), device)
        inputs.tables.copy_(update.tables)
        for mine, other in zip(inputs.work, update.work, strict=True):
            mine.items.copy_(other.items)
            mine.merges.copy_(other.merges)
        arrays = attention.prepare(second)
        exact = attention.plan(arrays, upload(arrays, device))
        for window in config.sliding_windows:
            expected = exact(query, cache, window)
            assert torch.equal(planned(query, cache, window), expected)

    def test_deterministic_output_does_not_depend_on_the_batch(self, device) -> None:
        """To the last bit, for decodes, short and long chunks, in any company."""
        config, dtype = model_config((2, 1)), torch.float16
        attention = TritonAttention(config, dtype, device, deterministic=True)
        size, width = attention.block_size, 20
        torch.manual_seed(0)
        blocks = (3 * width, size, 1, 16)
        cache = LayerCache(*(torch.randn(blocks, dtype=dtype, device=device) for _ in range(2)))
        watched = ((1100, 1), (530, 6), (70, 50))
        mates = ((20, 1), (1200, 1), (0, 90))
        queries = [
            torch.randn((new, 2, 16), dtype=dtype, device=device) for _, new in (*watched, *mates)
        ]

        def compute(chosen: list[int]) -> list[torch.Tensor]:
            lengths = [(*watched, *mates)[i] for i in chosen]
            parts = [
                StepPart([1] * new, past, range(width * (i % 3), width * (i % 3 + 1)), samples=True)
                for i, (past, new) in zip(chosen, lengths, strict=True)
            ]
            arrays = attention.prepare(step_arrays(join_parts(parts, size), size))
            planned = attention.plan(arrays, upload(arrays, device))
            output = planned(torch.cat([queries[i] for i in chosen]), cache, 0)
            return list(output.split([new for _, new in lengths]))

        together = compute([0, 1, 2, 3, 4, 5])
        for i in range(3):
            assert torch.equal(compute([i])[0], together[i])
        assert torch.equal(compute([4, 0])[1], together[0])
