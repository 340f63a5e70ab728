"""Quantised folders are served as the matrices that their integers stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sarathi.backends.executor import Executor
from sarathi.backends.step import Step
from tests.backends.engines import load, load_torch
from tests.tiny_models import VOCAB_SIZE
from tests.tiny_quantized import quantised, save_plain

PROMPT = np.random.default_rng(0).integers(2, VOCAB_SIZE, 70)
_FUSED = [("awq-row", "phi3"), ("gptq-v2", "falcon-40b"), ("int8", "phi3-sliding")]


def logits(executor: Executor) -> np.ndarray:
    """Those of all tokens of the prompt, computed in three chunks."""
    found = [_execute(executor, start, stop) for start, stop in ((0, 7), (7, 69), (69, 70))]
    return np.concatenate(found)


def _execute(executor: Executor, start: int, stop: int) -> np.ndarray:
    blocks = -(-stop // executor.block_size)
    step = Step(
        token_ids=PROMPT[start:stop],
        positions=np.arange(start, stop),
        query_starts=np.array([0, stop - start], np.int32),
        past_lens=np.array([start], np.int32),
        block_ids=np.arange(blocks, dtype=np.int32),
        block_starts=np.array([0, blocks], np.int32),
        sample_rows=np.arange(stop - start),
    )
    return executor.execute(step).copy()


@pytest.mark.parametrize(
    ("scheme", "family"),
    [
        *(
            (scheme, "llama")
            for scheme in (
                *("awq", "gptq", "gptq-zeros", "gptq-row", "gptq-8-zeros", "int4", "int4-zeros"),
                *("int8", "int8-zeros", "int8-tensor", "fp8-blocks", "float8-rows"),
            )
        ),
        *_FUSED,
    ],
)
def test_logits_are_those_of_the_dequantised_folder(
    scheme: str, family: str, tmp_path: Path
) -> None:
    plain = quantised(scheme, tmp_path / "quantised", family, head=family == "llama")
    save_plain(plain, tmp_path / "quantised", tmp_path / "plain")
    expected = logits(load(tmp_path / "plain", quantization="none"))
    for quantization in ("exact", "none"):
        executor = load(tmp_path / "quantised", quantization=quantization)
        found = logits(executor)
        np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
        assert executor.weights.num_bytes <= num_bytes(plain)


@pytest.mark.parametrize("quantization", ["exact", "int4"])
@pytest.mark.parametrize("scheme", ["gptq-act-order", "gptq-uneven"])
def test_what_has_no_form_is_served_in_int8(scheme: str, quantization: str, tmp_path: Path) -> None:
    plain = quantised(scheme, tmp_path / "quantised")
    save_plain(plain, tmp_path / "quantised", tmp_path / "plain")
    expected = logits(load(tmp_path / "plain", quantization="none"))
    executor = load(tmp_path / "quantised", quantization=quantization)
    found = logits(executor)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 0 < error < 0.05
    assert executor.weights.num_bytes < 0.6 * num_bytes(plain)  # embedding and head are plain


@pytest.mark.parametrize("scheme", ["awq", "gptq-act-order", "int8", "fp8-blocks"])
def test_torch_serves_them_expanded(scheme: str, tmp_path: Path) -> None:
    plain = quantised(scheme, tmp_path / "quantised")
    save_plain(plain, tmp_path / "quantised", tmp_path / "plain")
    expected = logits(load_torch(tmp_path / "plain"))
    np.testing.assert_array_equal(logits(load_torch(tmp_path / "quantised")), expected)


def num_bytes(tensors: dict[str, np.ndarray]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
