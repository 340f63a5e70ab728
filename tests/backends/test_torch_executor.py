"""What is particular to the torch executor; its results are compared in `test_parity`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from sarathi.backends import self_check
from sarathi.backends.self_check import check_deterministic, check_model
from sarathi.backends.step import StepError, StepPart, join_parts
from sarathi.backends.torch import torch_devices, torch_operations
from sarathi.backends.torch.torch_executor import TorchExecutor
from sarathi.errors import ExecutorError
from sarathi.models.decoder import Stage, pipeline_stages, whole_model
from sarathi.models.model import open_model
from sarathi.models.tensor_layout import expected_shapes
from tests import tiny_models
from tests.backends.engines import NUM_BLOCKS, engine, load_torch, run
from tests.backends.test_parity import GREEDY, LENGTHS, chunk

BLOCK_SIZE = 32


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_models.save_tiny("qwen2-sliding", folder)  # windows on some of the layers, a tied head
    return folder


@pytest.fixture(scope="module")
def executor(path: Path) -> TorchExecutor:
    return load_torch(path)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [rng.integers(2, tiny_models.VOCAB_SIZE, n).tolist() for n in LENGTHS]


def test_of_a_large_model_some_layers_are_checked(
    path: Path, executor: TorchExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[range] = []
    layer = sum(
        map(math.prod, expected_shapes(executor.config, Stage(range(1), False, False)).values())
    )

    def check(checking: TorchExecutor, weights: Any) -> None:
        checked.append(checking.stage.layers)
        check_model(checking, weights)

    monkeypatch.setattr("sarathi.backends.torch.torch_executor.check_model", check)
    for most in (3 * layer, 2 * layer, 1):
        monkeypatch.setattr(self_check, "_MAX_WEIGHTS", most)
        executor.check()
    assert checked == [range(3), range(2), range(1)]
    assert executor.stage == whole_model(executor.config)


class TestStages:
    def test_chained_they_give_the_same_to_the_last_bit(
        self, path: Path, executor: TorchExecutor, prompts: list[list[int]]
    ) -> None:
        stages = [load_torch(path, stage=stage) for stage in pipeline_stages(executor.config, 3)]
        for start, stop in ((0, 45), (45, 46), (46, 100)):
            step = chunk(prompts[2], start, stop)
            expected = executor.execute(step)
            passed: Any = None
            for stage in stages:
                passed = stage.execute(step, passed)
            assert np.array_equal(passed, expected)

    def test_each_has_its_share_and_checks_itself(
        self, path: Path, executor: TorchExecutor
    ) -> None:
        stages = [load_torch(path, stage=stage) for stage in pipeline_stages(executor.config, 3)]
        assert [3 * stage.block_bytes for stage in stages] == [executor.block_bytes] * 3
        for stage in stages:
            assert stage.weight_bytes < executor.weight_bytes
            stage.check()

    def test_hidden_states_travel_in_the_served_precision(self, path: Path) -> None:
        config = open_model(path).config
        first, second, third = (
            load_torch(path, stage=stage, precision="bf16") for stage in pipeline_stages(config, 3)
        )
        step = chunk([5, 6, 7], 0, 3)
        hidden = second.execute(step, first.execute(step))
        assert hidden.dtype == ml_dtypes.bfloat16
        assert hidden.shape == (3, config.hidden_size)
        assert third.execute(step, hidden).dtype == np.float32


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.1), ("f16", 0.02)])
def test_half_precisions_stay_near(
    path: Path, executor: TorchExecutor, prompts: list[list[int]], precision: str, tolerance: float
) -> None:
    step = chunk(prompts[2], 0, 64)
    expected: Any = executor.execute(step)
    half = load_torch(path, precision=precision)
    found: Any = half.execute(step)
    assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)
    assert 2 * half.weight_bytes == executor.weight_bytes
    assert 2 * half.block_bytes == executor.block_bytes
    half.check()


def test_many_decodes_of_different_lengths(executor: TorchExecutor) -> None:
    """They are padded in groups; each has the result that it has alone."""
    rng = np.random.default_rng(0)
    lengths = (1, 2, 31, 32, 33, 64, 65, 100, 130, 200, 12, 13)
    order = rng.permutation(NUM_BLOCKS).tolist()
    tables, parts = [], []
    for length in lengths:
        blocks = -(-length // BLOCK_SIZE)
        tables.append(order[:blocks])
        order = order[blocks:]
    tokens = [rng.integers(2, 256, length).tolist() for length in lengths]
    expected: list[Any] = []
    for mine, table in zip(tokens, tables, strict=True):
        step = join_parts([StepPart(mine, 0, table, samples=True)], BLOCK_SIZE)
        expected.append(executor.execute(step)[0].copy())
        parts.append(StepPart(mine[-1:], len(mine) - 1, table, samples=True))
    found: Any = executor.execute(join_parts(parts, BLOCK_SIZE))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    # A chunk between them is computed separately.
    hybrid = [*parts[:4], StepPart(tokens[9][50:], 50, tables[9], samples=True), *parts[5:]]
    found = executor.execute(join_parts(hybrid, BLOCK_SIZE))
    np.testing.assert_allclose(found, [*expected[:4], expected[9], *expected[5:]], atol=1e-3)


def test_a_prompt_longer_than_what_is_computed_at_a_time(tmp_path: Path) -> None:
    tiny_models.save_tiny("mistral-sliding", tmp_path)
    executor = load_torch(tmp_path, max_position=1300)
    prompt = np.random.default_rng(0).integers(2, 256, 1300).tolist()
    whole_model: Any = executor.execute(chunk(prompt, 0, 1300)).copy()
    parts: list[Any] = [
        executor.execute(chunk(prompt, i, i + 100)).copy() for i in range(0, 1300, 100)
    ]
    np.testing.assert_allclose(whole_model, np.concatenate(parts), atol=1e-3)


def test_deterministic_logits_do_not_depend_on_the_batch(path: Path) -> None:
    executor = load_torch(path, deterministic=True)
    check_deterministic(executor)
    with pytest.raises(ExecutorError, match="--deterministic is not possible"):
        check_deterministic(load_torch(path))


def test_blocks_in_place_of_those_there_were(path: Path, prompts: list[list[int]]) -> None:
    executor = load_torch(path)
    expected = run(engine(executor), prompts, GREEDY)
    executor.allocate(4)
    with pytest.raises(StepError, match="block_ids"):
        executor.execute(chunk(prompts[0], 0, 1))  # its block is the last of those before
    executor.allocate(NUM_BLOCKS)
    assert run(engine(executor), prompts, GREEDY) == expected


def test_the_check_notices_a_wrong_operation(
    executor: TorchExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor.check()
    monkeypatch.setattr(torch_operations, "_apply_rope", lambda x, tokens: x)
    with pytest.raises(ExecutorError, match="self-check failed"):
        executor.check()


def test_the_check_compares_every_sequence(
    executor: TorchExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = executor.execute
    monkeypatch.setattr(executor, "execute", lambda *arguments: execute(*arguments)[:1])
    with pytest.raises(ValueError, match="longer"):
        executor.check()


def test_progress_is_reported(path: Path) -> None:
    reported: list[float] = []
    load_torch(path, on_progress=reported.append)
    assert reported == sorted(reported)
    assert reported[-1] == 1.0


def test_what_is_left_for_the_cache(executor: TorchExecutor) -> None:
    memory = executor.free_memory()
    assert memory.free > 1e6
    assert memory.shared
    executor.allocate(NUM_BLOCKS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize(("utilization", "usable"), [(0.9, 60), (0.5, 20), (0.2, 0)])
def test_part_of_the_memory_of_each_gpu_may_be_used(
    utilization: float, usable: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_devices, "num_gpus", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (70, 100))  # 30 by others
    assert torch_devices.gpu_memory(utilization) == (usable, usable)


def test_a_gpu_that_is_not_there(path: Path) -> None:
    with pytest.raises(ExecutorError, match="device cuda: GPU number 0 is requested"):
        load_torch(path, device="cuda")
