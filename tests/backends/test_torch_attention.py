"""Steps made ready for attention and for graphs, without a model."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from sarathi.backends.step import StepPart, check_step, join_parts
from sarathi.backends.torch import torch_devices as devices
from sarathi.backends.torch.attention_backend import (
    LayerCache,
    block_size,
    check_attention,
    choose_attention,
)
from sarathi.backends.torch.attention_plan import BLOCK_SIZE, AttentionPlanner, AttentionShape
from sarathi.backends.torch.cuda_graphs import DecodeGraphs, graph_sizes
from sarathi.backends.torch.plain_attention import PlainAttention
from sarathi.backends.torch.step_inputs import (
    StepArrays,
    no_decodes,
    num_bytes,
    pack,
    padded,
    step_arrays,
    unpack,
    upload,
)
from sarathi.backends.torch.torch_devices import find_device
from sarathi.backends.torch.torch_executor import largest_step, warm_up_steps
from sarathi.errors import ExecutorError
from sarathi.models.model_config import ModelConfig
from sarathi.scheduler.prefill import MAX_SCORED_ROWS

BLOCK = 4
CPU = torch.device("cpu")
NAMES = [field.name for field in fields(StepArrays) if field.name != "work"]


def config(num_heads: int = 6, num_kv_heads: int = 2, windows: tuple[int, ...] = (0, 5)):
    return ModelConfig(
        architecture="Llama",
        vocab_size=8,
        hidden_size=num_heads * 8,
        intermediate_size=8,
        num_layers=len(windows),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=8,
        norm_eps=1e-5,
        max_position=512,
        inv_freq=(1.0,) * 4,
        sliding_windows=windows,
    )


def decodes(*contexts: int) -> StepArrays:
    """One new token each, in separate blocks."""
    parts, used = [], 1
    for context in contexts:
        count = -(-context // BLOCK)
        parts.append(StepPart([7], context - 1, range(used, used + count), samples=True))
        used += count
    return step_arrays(join_parts(parts, BLOCK), BLOCK)


class TestInputs:
    def test_slots_follow_the_block_tables(self) -> None:
        parts = [
            StepPart([1, 2, 3], 3, [9, 4], samples=True),
            StepPart([4], 0, [2], samples=False),
            StepPart([5, 6], 8, [0, 1, 7], samples=True),
        ]
        arrays = step_arrays(join_parts(parts, BLOCK), BLOCK)
        assert arrays.slots.tolist() == [39, 16, 17, 8, 28, 29]
        assert arrays.contexts.tolist() == [6, 1, 10]
        assert arrays.tables.tolist() == [[9, 4, 0], [2, 0, 0], [0, 1, 7]]
        assert arrays.sample_rows.tolist() == [2, 5]
        assert not arrays.only_decodes
        assert decodes(1, 5).only_decodes

    def test_decodes_are_filled_up_with_rows_that_write_to_the_spare_block(self) -> None:
        filled = padded(decodes(3, 6), size=4, width=5, block_size=BLOCK, spare_block=50)
        assert filled.slots.tolist() == [6, 13, 200, 200]
        assert filled.contexts.tolist() == [3, 6, 1, 1]
        assert filled.tables[:, 0].tolist() == [1, 2, 50, 50]
        assert filled.tables.shape == (4, 5)
        assert filled.query_starts.tolist() == [0, 1, 2, 3, 4]

    def test_all_steps_of_a_size_have_the_same_shapes(self) -> None:
        """A graph has memory for one shape."""
        shapes = {
            tuple((getattr(filled, name).shape, getattr(filled, name).dtype) for name in NAMES)
            for arrays in (no_decodes(), decodes(9), decodes(1, 2, 3), decodes(1, 2, 3, 20))
            for filled in [padded(arrays, size=4, width=5, block_size=BLOCK, spare_block=50)]
        }
        assert len(shapes) == 1

    @pytest.mark.parametrize("contexts", [(3,), (5, 1, 9)])
    def test_packed_for_one_copy(self, contexts: tuple[int, ...]) -> None:
        """Attention work included, of two windows, the second of which has no merges."""
        arrays = decodes(*contexts)
        planner = AttentionPlanner.make(AttentionShape(4, 2, 64, BLOCK), 2, 8)
        work = [planner.plan(arrays.query_starts, arrays.contexts * 900, w) for w in (0, 5)]
        unsampled = replace(arrays, sample_rows=arrays.sample_rows[:0])
        for each in (arrays, unsampled, replace(arrays, work=tuple(work))):
            packed = torch.zeros(num_bytes(each), dtype=torch.uint8)
            pack(each, packed)
            inputs = unpack(each, packed)
            pairs = [(getattr(each, name), getattr(inputs, name)) for name in NAMES]
            for expected, tensors in zip(each.work, inputs.work, strict=True):
                pairs += [(expected.items, tensors.items), (expected.merges, tensors.merges)]
            for array, tensor in pairs:
                assert tensor.numpy().dtype == array.dtype
                assert np.array_equal(tensor.numpy(), array)

    def test_token_ids_may_be_negative(self) -> None:
        """They can refer to tokens that are not sampled yet."""
        arrays = replace(decodes(3), token_ids=np.array([-5]))
        packed = torch.zeros(num_bytes(arrays), dtype=torch.uint8)
        pack(arrays, packed)
        assert unpack(arrays, packed).token_ids.tolist() == [-5]

    @pytest.mark.parametrize(("tokens", "sequences"), [(10, 3), (2, 5), (64, 1)])
    def test_the_largest_step(self, tokens: int, sequences: int) -> None:
        step = largest_step(tokens, sequences, BLOCK)
        assert len(step.token_ids) == tokens
        assert len(step.past_lens) == min(tokens, sequences)
        assert len(step.sample_rows) == min(tokens, sequences + MAX_SCORED_ROWS)
        assert not step.block_ids.any()


class TestGraphs:
    def test_sizes(self) -> None:
        assert graph_sizes(1) == (1,)
        assert graph_sizes(7) == (1, 2, 4, 7)
        assert graph_sizes(20) == (1, 2, 4, 8, 16, 20)
        assert graph_sizes(300)[-4:] == (240, 256, 288, 300)
        assert graph_sizes(1000)[-1] == 512

    def test_a_step_takes_the_next_larger_graph(self) -> None:
        captured: list[int] = []
        ran: list[tuple[int, list[int]]] = []

        class Fake:
            """Runs what would be captured."""

            def __init__(self, shape: StepArrays) -> None:
                self.size = len(shape.contexts)
                assert (shape.slots == 9 * BLOCK).all()
                captured.append(self.size)

            def __call__(
                self,
                arrays: StepArrays,
                received: torch.Tensor | None,
                last_tokens: torch.Tensor | None,
            ) -> torch.Tensor:
                assert len(arrays.contexts) == self.size
                ran.append((self.size, arrays.contexts.tolist()))
                return torch.from_numpy(arrays.contexts)

        graphs = DecodeGraphs((1, 2, 4), Fake, width=8, block_size=BLOCK, spare_block=9)
        assert captured == [4, 2, 1]
        assert graphs.run(decodes(5, 6, 7), None).tolist() == [5, 6, 7]
        assert graphs.run(decodes(3), None).tolist() == [3]
        assert ran == [(4, [5, 6, 7, 1]), (1, [3])]
        assert graphs.accepts(decodes(1, 1, 1, 1))
        assert not graphs.accepts(decodes(1, 1, 1, 1, 1))
        prompt = join_parts([StepPart([1, 2], 0, [0], samples=True)], BLOCK)
        assert not graphs.accepts(step_arrays(prompt, BLOCK))


class TestCheck:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("heads", [(6, 2), (4, 4), (3, 1)])
    @pytest.mark.parametrize("one_by_one", [False, True])
    def test_plain_attention_passes(
        self, dtype: torch.dtype, heads: tuple[int, int], one_by_one: bool
    ) -> None:
        sizes = config(*heads, windows=(0, 1, 20, 40))
        attention = PlainAttention(sizes, dtype, one_by_one=one_by_one)
        check_attention(attention, sizes, dtype, CPU)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_plain_attention_with_a_scale_and_a_cap(self, dtype: torch.dtype) -> None:
        sizes = replace(config(), attention_scale=0.8, attention_soft_cap=1.5)
        check_attention(PlainAttention(sizes, dtype), sizes, dtype, CPU)
        for changed in ({"attention_scale": 0.7}, {"attention_soft_cap": 0.0}):
            wrong = PlainAttention(replace(sizes, **changed), dtype)
            with pytest.raises(ExecutorError, match="self-check failed: attention"):
                check_attention(wrong, sizes, dtype, CPU)

    def test_it_notices_a_window_that_is_off_by_one(self) -> None:
        plain = PlainAttention(config(), torch.float32)

        class Wrong:
            block_size = plain.block_size
            supports_graphs = plain.supports_graphs

            def prepare(self, arrays, *, fixed_shape=False):
                return arrays

            def plan(self, arrays, inputs):
                planned = plain.plan(arrays, inputs)
                return lambda query, cache, window: planned(query, cache, window and window + 1)

        with pytest.raises(ExecutorError, match="self-check failed: attention"):
            check_attention(Wrong(), config(), torch.float32, CPU)  # type: ignore[arg-type]


class TestChoice:
    def test_plain_attention_on_cpus(self) -> None:
        assert isinstance(choose_attention(config(), torch.bfloat16, CPU), PlainAttention)
        assert block_size(CPU) == PlainAttention.block_size
        assert block_size(torch.device("cuda")) == BLOCK_SIZE

    def test_a_gpu_must_not_be_too_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake_gpu(monkeypatch, (7, 5), "Tesla T4")
        with pytest.raises(ExecutorError, match=r"Tesla T4 has compute capability 7\.5; 8\.0 or"):
            find_device("cuda")

    def test_a_gpu_needs_triton(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake_gpu(monkeypatch, (9, 0), "NVIDIA H100")
        assert find_device("cuda") == torch.device("cuda", 0)
        monkeypatch.setattr(devices, "find_spec", lambda name: None)
        with pytest.raises(ExecutorError, match=r"needs Triton.*pip install"):
            find_device("cuda")

    def test_triton_needs_a_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake_gpu(monkeypatch, (9, 0), "NVIDIA H100")
        for name in ("CC", "CPATH", "C_INCLUDE_PATH"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": "/nowhere"})
        with pytest.raises(ExecutorError, match=r"header files \(/nowhere/Python.h"):
            find_device("cuda")
        monkeypatch.setattr("shutil.which", lambda name: None)
        with pytest.raises(ExecutorError, match="Triton needs a C compiler"):
            find_device("cuda")

    @staticmethod
    def fake_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str) -> None:
        monkeypatch.setattr(devices, "find_spec", lambda name: object())
        for attribute, value in (
            ("is_available", True),
            ("device_count", 1),
            ("get_device_capability", capability),
            ("get_device_name", name),
        ):
            monkeypatch.setattr(torch.cuda, attribute, lambda *_, value=value: value)


class TestWarmUp:
    @pytest.mark.parametrize("max_position", [1, 40, 512, 8192])
    def test_steps_fit_the_executor(self, max_position: int) -> None:
        steps = warm_up_steps(BLOCK_SIZE, max_position)
        for step in steps:
            check_step(
                step, num_blocks=1, block_size=BLOCK_SIZE, vocab_size=1, max_position=max_position
            )

    def test_every_kind_of_tile_is_used_and_keys_are_split(self) -> None:
        found = set()
        planner = AttentionPlanner.make(AttentionShape(32, 8, 128), 2, num_sms=132)
        for step in warm_up_steps(BLOCK_SIZE, 8192):
            arrays = step_arrays(step, BLOCK_SIZE)
            work = planner.plan(arrays.query_starts, arrays.contexts, 0)
            found.add((work.has_prefill, work.has_decode, len(work.merges) > 0))
        assert found == {(True, False, False), (True, True, True), (False, True, True)}


def test_padding_does_not_reach_the_output() -> None:
    """What lies in blocks that a sequence does not have is never seen, were it not a number."""
    sizes = config()
    attention = PlainAttention(sizes, torch.float32)
    size = attention.block_size
    shape = (8, size, sizes.num_kv_heads, sizes.head_dim)
    cache = LayerCache(torch.randn(shape), torch.randn(shape))
    parts = [StepPart([1], size + 3, [1, 2], samples=True), StepPart([1], 3, [3], samples=True)]
    arrays = step_arrays(join_parts(parts, size), size)
    query = torch.randn(2, sizes.num_heads, sizes.head_dim)

    def computed() -> np.ndarray:
        return attention.plan(arrays, upload(arrays, CPU))(query, cache, 0).numpy()

    before = computed()
    cache.keys[[0, 4, 5, 6, 7]] = 1e9
    cache.values[[0, 4, 5, 6, 7]] = 1e9
    cache.values[3, 4:] = 1e9
    assert np.array_equal(computed(), before)
