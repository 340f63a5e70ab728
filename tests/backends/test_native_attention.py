"""Native attention against numpy and the plugin's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import pytest
from openvino import opset13 as op
from openvino.utils.node_factory import NodeFactory

from sarathi.backends.openvino.native_attention import NativeAttention, join_step
from sarathi.backends.openvino.native_build import native_library
from sarathi.backends.openvino.openvino_executor import OpenVinoExecutor, _core
from sarathi.backends.step import StepPart, join_parts
from sarathi.errors import ExecutorError
from sarathi.models.model import open_model
from sarathi.models.model_config import ModelConfig
from tests import tiny_models
from tests.backends.engines import NUM_BLOCKS, load
from tests.backends.natives import needs_native

_BLOCK = 32
Floats = npt.NDArray[np.floating[Any]]


@pytest.fixture
def config(sliding_folder: Path) -> ModelConfig:
    return open_model(sliding_folder).config


class Kernel:
    """One layer's attention as a graph of its own, with a cache that is full of NaN at first."""

    def __init__(self, config: ModelConfig, num_blocks: int) -> None:
        factory = NodeFactory()
        factory.add_extension(native_library())
        native = NativeAttention(config, factory)
        types = [np.float32] * 3 + [np.uint8] * 2 + [np.int32] * 4
        inputs = [op.parameter([-1] * (2 if i < 5 else 1), t) for i, t in enumerate(types)]
        nodes = [*inputs[:5], join_step(*inputs[5:])]
        output = native.node([node.output(0) for node in nodes], 0)
        model = ov.Model([op.result(output)], inputs, "attention")
        compiled = _core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 2})
        self._request = compiled.create_infer_request()
        self._caches = [np.full((num_blocks, native.block_bytes), 255, np.uint8) for _ in range(2)]

    def __call__(
        self, query: Floats, key: Floats, value: Floats, *step: npt.NDArray[np.int64]
    ) -> Floats:
        given = [query, key, value, *self._caches, *(each.astype(np.int32) for each in step)]
        rows = [each.reshape(len(each), -1) for each in given[:5]]
        for number, array in enumerate([*rows, *given[5:]]):
            self._request.set_input_tensor(number, ov.Tensor(array, shared_memory=True))
        self._request.infer()
        return self._request.get_output_tensor(0).data.reshape(query.shape).copy()


def vectors(rng: np.random.Generator, *shape: int) -> tuple[Floats, Floats]:
    """Random vectors, and what 256 values from the least to the largest element leave of each."""
    steps = rng.integers(1, 255, shape)
    steps[..., 0], steps[..., -1] = 255, 0
    scale = rng.uniform(0.01, 0.05, (*shape[:-1], 1))
    least = -128 * scale + rng.uniform(-1, 1, scale.shape)
    nearby = rng.uniform(-0.4, 0.4, shape)
    nearby[..., [0, -1]] = 0
    return (least + scale * (steps + nearby)).astype(np.float32), least + scale * steps


def expected(query: Floats, keys: Floats, values: Floats, scale: float, window: int) -> Floats:
    """Attention of the last tokens, [tokens, heads, dim], in float64."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (np.repeat(each, group, 1) for each in (keys, values))
    past, rows = len(keys) - len(query), np.arange(len(query))[:, None]
    columns = np.arange(len(keys))
    seen = columns <= past + rows
    if window:
        seen &= columns > past + rows - window
    scores = np.einsum("qhd,khd->hqk", query, keys) * scale
    weights = np.exp(np.where(seen, scores - scores.max(-1, keepdims=True), -np.inf))
    return np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), values)


@needs_native
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "window"),
    [
        (9, 3, 64, 0),
        (4, 4, 16, 0),
        (8, 1, 32, 40),
        (14, 2, 64, 300),
        (5, 5, 80, 7),
        (4, 1, 128, 0),
        (64, 1, 16, 100),
    ],
)
def test_hybrid_batches_over_permuted_blocks(
    config: ModelConfig, heads: int, kv_heads: int, dim: int, window: int
) -> None:
    config = replace(
        config,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=dim,
        inv_freq=(1.0,) * (dim // 2),
        attention_scale=0.5 * dim**-0.5,
        sliding_windows=(window,) * config.num_layers,
    )
    rng = np.random.default_rng(1)
    past = np.array([0, 1000, 20, 511, 300, 256, 90])
    new = np.array([1, 1, 33, 1, 100, 7, 600])
    totals = past + new
    tables = np.split(
        rng.permutation(sum(-(-totals // _BLOCK)) + 3), np.cumsum(-(-totals // _BLOCK))
    )[: len(totals)]
    kernel = Kernel(config, sum(map(len, tables)) + 3)
    keys, values = ([vectors(rng, n, kv_heads, dim) for n in totals] for _ in range(2))

    def run(starts: Iterable[int], stops: Iterable[int]) -> list[tuple[Floats, Floats]]:
        """The query and the output of each sequence that has new tokens, from start to stop."""
        parts = [
            (i, start, stop)
            for i, (start, stop) in enumerate(zip(starts, stops, strict=True))
            if stop > start
        ]
        lengths = [stop - start for _, start, stop in parts]
        query = rng.standard_normal((sum(lengths), heads, dim), np.float32)
        new_keys, new_values = (
            np.concatenate([each[i][0][start:stop] for i, start, stop in parts])
            for each in (keys, values)
        )
        used = [tables[i] for i, _, _ in parts]
        output = kernel(
            query,
            new_keys,
            new_values,
            np.array([start for _, start, _ in parts]),
            np.cumsum([0, *lengths]),
            np.cumsum([0, *map(len, used)]),
            np.concatenate(used),
        )
        cuts = np.cumsum(lengths)[:-1]
        return list(zip(np.split(query, cuts), np.split(output, cuts), strict=True))

    run(np.zeros_like(past), past // 2)  # prompts in two chunks, then a hybrid batch
    run(past // 2, past)
    results = list(enumerate(run(past, totals)))
    # Alone in its step, the keys of a decode are split between threads.
    results += [(1, run(past * (totals == totals[1]), totals * (totals == totals[1]))[0])]
    for i, (query, output) in results:
        right = expected(query, keys[i][1], values[i][1], config.score_scale, window)
        assert np.abs(output - right).max() < 1e-4


@needs_native
@pytest.mark.parametrize("family", ["llama", "phi3-sliding", "gemma3", "falcon-40b"])
def test_logits_are_as_exact_as_the_plugins(family: str, tmp_path: Path) -> None:
    tiny_models.save_tiny(family, tmp_path)
    tokens = np.random.default_rng(0).integers(2, 200, 300).tolist()
    blocks = np.random.default_rng(1).permutation(NUM_BLOCKS).tolist()[:10]

    def logits(executor: OpenVinoExecutor, chunk: int) -> Floats:
        for start in range(0, len(tokens), chunk):
            part = StepPart(tokens[start : start + chunk], start, blocks, samples=True)
            last = executor.execute(join_parts([part], executor.block_size))[0]
        return last.copy()

    exact = logits(load(tmp_path, kv_precision="f32"), 300)
    plugin, native = (
        load(tmp_path, kv_precision="u8", kernels=kernels) for kernels in ("plugin", "native")
    )
    native.check()
    assert (plugin.kernels, native.kernels) == ("plugin", "native attention")
    assert plugin.block_bytes == native.block_bytes

    def distance(found: Floats) -> float:
        return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))

    usual = distance(logits(plugin, 300))
    for chunk in (1, 33, 300):
        assert 0 < distance(logits(native, chunk)) < 2 * usual + 0.01


@needs_native
def test_the_self_check_names_the_kernels(sliding_folder: Path) -> None:
    executor = load(sliding_folder, kv_precision="u8", kernels="native")
    executor.config = replace(executor.config, norm_eps=1.0)
    with pytest.raises(ExecutorError, match=r"self-check failed.*kernels: native attention"):
        executor.check()
