"""The executor by itself: precisions, memory, and its refusal to compute nonsense."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sarathi.backends.openvino.openvino_executor import (
    OpenVinoExecutor,
    choose_precisions,
    supported_precisions,
)
from sarathi.backends.registry import ExecutorOptions, KvPrecision, Precision
from sarathi.backends.step import Step, StepError, StepPart, join_parts
from sarathi.errors import ExecutorError
from sarathi.models.weights import Array
from tests import tiny_models
from tests.backends.engines import NUM_BLOCKS, load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_models.save_tiny("mistral-sliding", folder)
    return folder


@pytest.fixture(scope="module")
def falcon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_models.save_tiny("falcon-40b", folder)
    return folder


@pytest.mark.parametrize("kv_precision", ["u8", None])
@pytest.mark.parametrize("precision", supported_precisions())
def test_every_precision_passes_the_self_check(
    folder: Path, precision: str, kv_precision: str | None
) -> None:
    executor = load(folder, precision=precision, kv_precision=kv_precision)
    assert executor.precision == precision
    assert executor.kv_precision == (kv_precision or ("f32" if precision == "f32" else "u8"))
    executor.check()


@pytest.mark.parametrize(
    ("precision", "changes", "expected"),
    [
        ("f32", {}, "f32"),
        ("bf16", {}, "u8"),
        ("f16", {}, "u8"),
        (None, {}, "u8"),
        ("bf16", {"kv_precision": "bf16"}, "bf16"),
        ("f16", {"deterministic": True}, "f16"),
        ("f16", {"deterministic": True, "kv_precision": "u8"}, "u8"),
    ],
)
def test_the_cache_is_narrow_where_nobody_expects_exact_results(
    precision: Precision | None,
    changes: dict[str, Any],
    expected: KvPrecision,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = "sarathi.backends.openvino.openvino_executor.supported_precisions"
    monkeypatch.setattr(module, lambda: ("f32", "bf16", "f16"))
    options = ExecutorOptions(max_position=64, max_tokens=64, precision=precision, **changes)
    assert choose_precisions(options) == (precision or "bf16", expected)


def test_a_narrow_cache_is_as_exact_whatever_the_chunks(folder: Path) -> None:
    exact, narrow = (load(folder, kv_precision=kv) for kv in ("f32", "u8"))
    tokens = np.random.default_rng(0).integers(2, 200, 70).tolist()

    def logits(executor: OpenVinoExecutor, chunk: int) -> Array:
        for start in range(0, len(tokens), chunk):
            part = StepPart(tokens[start : start + chunk], start, range(3), samples=True)
            last = executor.execute(join_parts([part], executor.block_size))[0]
        return last.copy()

    expected = logits(exact, 70)
    for chunk in (1, 7, 33, 70):
        difference = np.subtract(logits(narrow, chunk), expected)
        assert 0 < np.linalg.norm(difference) / np.linalg.norm(expected) < 0.1


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_precision_that_the_processor_lacks_is_refused(
    folder: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sarathi.backends.openvino.openvino_executor.supported_precisions", lambda: ("f16",)
    )
    with pytest.raises(ExecutorError, match=f"does not compute in {precision}, only in f16"):
        load(folder, precision=precision)


def test_weights_and_cache_of_different_floats_are_refused(folder: Path) -> None:
    with pytest.raises(ExecutorError, match="the KV cache can be f32 or u8, not bf16"):
        load(folder, precision="f32", kv_precision="bf16")


def test_a_smaller_cache_element_makes_a_smaller_block(folder: Path) -> None:
    wide, narrow = (load(folder, kv_precision=kv).block_bytes for kv in ("f32", "u8"))
    layers, heads, tokens, dim = 3, 2, 32, 16
    assert wide == 2 * layers * heads * tokens * dim * 4
    assert narrow == 2 * layers * heads * tokens * (dim + 8)


@pytest.mark.parametrize(
    "wrong",
    [{"sliding_windows": (0, 0, 0)}, {"norm_eps": 1.0}, {"inv_freq": (0.5,) * 8}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_the_self_check_notices_a_graph_that_is_not_the_model(
    folder: Path, wrong: dict[str, object]
) -> None:
    executor = load(folder)
    executor.config = replace(executor.config, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ExecutorError, match="self-check failed"):
        executor.check()


@pytest.mark.parametrize(
    "wrong",
    [{"norm": "rms"}, {"parallel": False}, {"activation": "silu"}, {"norm_eps": 1.0}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_the_self_check_notices_a_graph_that_is_not_falcon(
    falcon: Path, wrong: dict[str, object]
) -> None:
    executor = load(falcon)
    executor.check()
    executor.config = replace(executor.config, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ExecutorError, match="self-check failed"):
        executor.check()


@pytest.mark.parametrize("precision", supported_precisions())
@pytest.mark.parametrize("kv_precision", [None, "u8"])
def test_falcon_passes_the_self_check(
    falcon: Path, precision: str, kv_precision: str | None
) -> None:
    load(falcon, precision=precision, kv_precision=kv_precision).check()


def test_the_self_check_notices_nan(folder: Path) -> None:
    executor = load(folder)
    good = executor.execute
    executor.execute = lambda *given: good(*given) * np.float32(np.nan)  # type: ignore[method-assign]
    with pytest.raises(ExecutorError, match="self-check failed"):
        executor.check()


def test_a_malformed_step_never_reaches_native_code(folder: Path) -> None:
    executor = load(folder)
    step = Step(
        token_ids=np.array([1]),
        positions=np.array([0]),
        query_starts=np.array([0, 1], np.int32),
        past_lens=np.array([0], np.int32),
        block_ids=np.array([NUM_BLOCKS], np.int32),
        block_starts=np.array([0, 1], np.int32),
        sample_rows=np.array([0]),
    )
    with pytest.raises(StepError, match=f"block_ids holds {NUM_BLOCKS}"):
        executor.execute(step)
    executor.execute(replace(step, block_ids=np.array([0], np.int32)))


def test_packed_weights_move_to_huge_pages_after_the_first_steps(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = load(folder)
    happened: list[str] = []
    module = "sarathi.backends.openvino.openvino_executor"
    monkeypatch.setattr(f"{module}.collapse_resident_memory", lambda: happened.append("collapsed"))
    monkeypatch.setattr(f"{module}._FROM_BYTES", 0)
    with executor.warming_up():
        executor.check()
        happened.append("computed")
    assert happened == ["computed", "collapsed"]
