"""The memory computed from sizes is what executors allocate."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sarathi.backends.executor import ExecutorPart
from sarathi.backends.footprint import footprint, kv_block_bytes, num_parameters
from sarathi.backends.openvino.openvino_executor import (
    BLOCK_SIZE,
    OpenVinoExecutor,
    supported_precisions,
)
from sarathi.backends.registry import ExecutorOptions, KvPrecision, Precision
from sarathi.backends.self_check import NUM_BLOCKS
from sarathi.backends.torch.torch_executor import TorchExecutor
from sarathi.models.decoder import Stage, pipeline_stages, whole_model
from sarathi.models.model import Model, open_model
from sarathi.models.sharding import Shard
from tests.tiny_models import save_tiny

WHOLE = Shard()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    models: dict[str, Model] = {}

    def saved(family: str) -> Model:
        if family not in models:
            folder = tmp_path_factory.mktemp(family)
            save_tiny(family, folder)
            models[family] = open_model(folder)
        return models[family]

    return saved


@pytest.mark.parametrize("family", ["llama-tied", "qwen3-wide-heads", "falcon-180b", "gemma"])
@pytest.mark.parametrize(
    ("precision", "kv_precision"),
    [("f32", "f32"), ("f32", "u8"), ("bf16", "bf16"), ("bf16", "u8"), ("f16", "f16")],
)
@pytest.mark.parametrize("num_stages", [1, 3])
def test_openvino_allocates_the_footprint(
    family: str,
    precision: Precision,
    kv_precision: KvPrecision,
    num_stages: int,
    saved: Callable[[str], Model],
) -> None:
    if precision not in supported_precisions():
        pytest.skip(f"this processor does not compute in {precision}")
    model = saved(family)
    stage = pipeline_stages(model.config, num_stages)[0]
    options = ExecutorOptions(
        max_position=64, max_tokens=64, precision=precision, kv_precision=kv_precision
    )
    executor = OpenVinoExecutor(model, options, ExecutorPart(stage, threads=1))
    found = footprint(
        model.config,
        stage,
        WHOLE,
        precision=precision,
        kv_precision=kv_precision,
        block_size=BLOCK_SIZE,
    )
    assert found.weight_bytes == executor.weight_bytes
    assert found.block_bytes == executor.block_bytes


@pytest.mark.parametrize("shard", [WHOLE, Shard(1, 2)])
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_torch_allocates_the_footprint(
    precision: Precision, shard: Shard, saved: Callable[[str], Model]
) -> None:
    model = saved("falcon-180b")
    stage = pipeline_stages(model.config, 3)[2]
    options = ExecutorOptions(max_position=64, max_tokens=64, precision=precision, device="cpu")
    executor = TorchExecutor(model, options, ExecutorPart(stage, shard, threads=1))
    found = footprint(
        model.config,
        stage,
        shard,
        precision=precision,
        kv_precision=precision,
        block_size=executor.block_size,
    )
    assert found.weight_bytes == executor.weight_bytes
    assert found.block_bytes == executor.block_bytes


def test_stages_have_all_layers_between_them_and_a_tied_matrix_at_both_ends(
    saved: Callable[[str], Model],
) -> None:
    config = saved("llama-tied").config

    def compute(stage: Stage, shard: Shard = WHOLE) -> tuple[int, int]:
        found = footprint(
            config, stage, shard, precision="f32", kv_precision="f32", block_size=BLOCK_SIZE
        )
        return found.weight_bytes, found.block_bytes

    weights, block = compute(whole_model(config))
    parts = [compute(stage) for stage in pipeline_stages(config, 3)]
    assert weights == 4 * num_parameters(config)
    matrix = 4 * config.vocab_size * config.hidden_size
    assert sum(part[0] for part in parts) == weights + matrix
    assert sum(part[1] for part in parts) == block
    # Two ranks have half of every matrix and of the keys, and each its copy of the norms.
    norms = 4 * config.hidden_size * (2 * config.num_layers + 1)
    assert compute(whole_model(config), Shard(0, 2)) == ((weights + norms) // 2, block // 2)


def test_ranks_that_share_a_key_head_each_keep_its_keys(saved: Callable[[str], Model]) -> None:
    yi = saved("yi").config  # one key head
    config = replace(yi, num_layers=1, sliding_windows=(0,))
    for count in (1, 2, 4):
        found = footprint(
            config,
            whole_model(config),
            Shard(0, count),
            precision="bf16",
            kv_precision="bf16",
            block_size=BLOCK_SIZE,
        )
        assert found.block_bytes == 2 * BLOCK_SIZE * config.head_dim * 2


@pytest.mark.parametrize(("head_dim", "num_kv_heads"), [(48, 2), (64, 3), (80, 1), (256, 1)])
def test_openvino_allocates_u8_blocks_of_heads_of_any_width(
    head_dim: int, num_kv_heads: int, tmp_path: Path
) -> None:
    save_tiny("qwen3-wide-heads", tmp_path)
    path = tmp_path / "config.json"
    heads = {"head_dim": head_dim, "num_key_value_heads": num_kv_heads}
    heads["num_attention_heads"] = 2 * num_kv_heads
    path.write_text(json.dumps(json.loads(path.read_text()) | heads))
    model = open_model(tmp_path, "dummy")
    options = ExecutorOptions(max_position=64, max_tokens=64, precision="f32", kv_precision="u8")
    executor = OpenVinoExecutor(model, options, ExecutorPart(whole_model(model.config), threads=1))
    block = kv_block_bytes(num_kv_heads, head_dim, "u8", BLOCK_SIZE)
    assert executor.block_bytes == model.config.num_layers * block
    executor.allocate(NUM_BLOCKS)
    executor.check()


def test_u8_keeps_scales() -> None:
    assert kv_block_bytes(3, 64, "u8", 32) == 3 * 2 * 32 * (64 + 8)
