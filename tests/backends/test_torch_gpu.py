"""The torch executor computes on a GPU what it computes on a CPU. Skipped without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sarathi.backends.registry import Precision
from sarathi.backends.step import Step, StepPart, join_parts
from sarathi.backends.torch.attention_backend import check_attention, choose_attention
from sarathi.backends.torch.torch_devices import DTYPES
from sarathi.backends.torch.torch_executor import TorchExecutor
from sarathi.models.decoder import pipeline_stages
from sarathi.models.model import open_model
from sarathi.models.model_config import ModelConfig
from tests import tiny_models
from tests.backends.engines import NUM_BLOCKS, load_torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
# Kernels are compiled for every head size, precision and so on: tests share them where they can.
FAMILIES = (
    *("llama-biases", "qwen2-sliding", "qwen3-wide-heads", "falcon-180b"),
    *("gemma2", "gemma3-scaled"),
)
MAX_BATCH_SIZE = 16
TOLERANCES: dict[Precision, float] = {"f32": 1e-3, "f16": 0.03, "bf16": 0.15}


def attention_config(head_dim: int, windows: tuple[int, ...]) -> ModelConfig:
    return ModelConfig(
        architecture="Llama",
        vocab_size=8,
        hidden_size=8 * head_dim,
        intermediate_size=8,
        num_layers=len(windows),
        num_heads=8,
        num_kv_heads=2,
        head_dim=head_dim,
        norm_eps=1e-5,
        max_position=4096,
        inv_freq=(1.0,) * (head_dim // 2),
        sliding_windows=windows,
    )


@pytest.mark.parametrize(
    ("head_dim", "precision", "windows", "deterministic"),
    [
        (64, "bf16", (0,), False),
        (80, "bf16", (0,), False),
        (128, "bf16", (0, 7, 100), False),
        (128, "bf16", (0, 7, 100), True),
        (256, "bf16", (0,), False),
        (128, "f16", (0,), False),
        (64, "f32", (0, 100), False),
    ],
)
def test_attention_passes_its_check(
    head_dim: int, precision: Precision, windows: tuple[int, ...], deterministic: bool
) -> None:
    config, dtype = attention_config(head_dim, windows), DTYPES[precision]
    device = torch.device("cuda")
    check_attention(choose_attention(config, dtype, device, deterministic), config, dtype, device)


def steps(executor: TorchExecutor) -> list[Step]:
    """A prompt, its remainder with another, decodes, many decodes."""
    size = executor.block_size
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 256, (12, 80)).tolist()
    tables = [range(4 * i, 4 * i + 4) for i in range(12)]

    def part(sequence: int, past: int, stop: int) -> StepPart:
        return StepPart(tokens[sequence][past:stop], past, tables[sequence], samples=True)

    return [
        join_parts(parts, size)
        for parts in (
            [part(0, 0, 50)],
            [part(0, 50, 70), part(1, 0, 33)],
            [part(0, 70, 71), part(1, 33, 34)],
            [part(i, 0, 1 + 5 * i) for i in range(2, 12)],
            [part(i, 1 + 5 * i, 2 + 5 * i) for i in range(2, 12)],
            [part(0, 71, 72)],
        )
    ]


def load_gpu(path: Path, **options: Any) -> TorchExecutor:
    return load_torch(path, device="cuda", max_batch_size=MAX_BATCH_SIZE, **options)


@pytest.fixture
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tiny_models.save_tiny(request.param, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "precision"),
    [
        *((family, "f16") for family in FAMILIES),
        ("llama-biases", "bf16"),
        ("qwen2-sliding", "f32"),
    ],
    indirect=["path"],
)
def test_logits_are_those_of_a_cpu(path: Path, precision: Precision) -> None:
    """Decodes run from graphs, with rows that fill them up."""
    cpu = load_torch(path)
    gpu = load_gpu(path, precision=precision)
    gpu.check()
    gpu.allocate(NUM_BLOCKS)
    for expected_step, step in zip(steps(cpu), steps(gpu), strict=True):
        expected: Any
        found: Any
        expected, found = cpu.execute(expected_step), gpu.execute(step)
        distance = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert distance < TOLERANCES[precision]


@pytest.mark.parametrize("path", ["llama-biases", "qwen2-sliding"], indirect=True)
def test_graphs_change_nothing(path: Path) -> None:
    executor = load_gpu(path, precision="f16")
    with_graphs: list[Any] = [executor.execute(step).copy() for step in steps(executor)]
    assert executor._graphs is not None
    executor._graphs = None
    for step, expected in zip(steps(executor), with_graphs, strict=True):
        without: Any = executor.execute(step)
        np.testing.assert_allclose(without, expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("path", ["qwen2-sliding", "falcon-180b"], indirect=True)
def test_stages_chained(path: Path) -> None:
    whole = load_gpu(path, precision="f16")
    stages = [
        load_gpu(path, precision="f16", stage=stage)
        for stage in pipeline_stages(open_model(path).config, 3)
    ]
    for step in steps(whole):
        passed: Any = None
        for stage in stages:
            output = stage.execute(step, passed)
            passed = output.copy()
        expected: Any = whole.execute(step)
        np.testing.assert_allclose(passed, expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("path", ["llama-biases"], indirect=True)
def test_memory_is_measured(path: Path) -> None:
    executor = load_gpu(path)
    free = executor.free_memory().free
    assert 0 < free < torch.cuda.mem_get_info()[1]
    num_blocks = min(1000, free // executor.block_bytes)
    executor.allocate(num_blocks)
    assert executor.execute(steps(executor)[0]).shape == (1, executor.config.vocab_size)
