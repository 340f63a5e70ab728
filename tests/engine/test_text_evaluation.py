"""Perplexity is that of `transformers`, divergences those of numpy, and chunks do not matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from sarathi.backends.model_instance import load_executor
from sarathi.backends.openvino.openvino_executor import supported_precisions
from sarathi.engine import text_evaluation
from sarathi.engine.config import EngineConfig
from sarathi.engine.text_evaluation import (
    LogitsDivergence,
    TokenDistributions,
    builtin_text,
    cut_into_windows,
    evaluate,
    reference_config,
)
from sarathi.errors import ConfigError, ExecutorError, ModelError
from sarathi.models.locate import locate
from sarathi.models.model import open_model, open_tokenizer
from tests.tiny_models import save_tiny

_LENGTHS = (100, 41, 2, 100)
_WINDOWS = [[(7 * i + j * j) % 254 + 2 for j in range(n)] for i, n in enumerate(_LENGTHS)]
_F32 = EngineConfig(precision="f32", threads=1)


def config(**options: Any) -> EngineConfig:
    return EngineConfig(**{"precision": "f32", "threads": 1, **options})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny("llama", folder)
    return folder


def transformers_logits(path: Path) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    """The logits at all but the last position of each window."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [model(torch.tensor([ids])).logits[0, :-1].double().numpy() for ids in _WINDOWS]


def perplexity(path: Path) -> float:
    losses = [
        torch.nn.functional.cross_entropy(
            torch.tensor(logits), torch.tensor(ids[1:]), reduction="none"
        )
        for logits, ids in zip(transformers_logits(path), _WINDOWS, strict=True)
    ]
    return float(torch.cat(losses).mean().exp())


@pytest.mark.parametrize("executor", ["openvino", "torch"])
def test_the_perplexity_is_that_of_transformers(tiny: Path, executor: str) -> None:
    device = {"device": "cpu"} if executor == "torch" else {}
    found = evaluate(open_model(tiny), _WINDOWS, config(executor=executor, **device))
    assert found.tokens == sum(_LENGTHS) - len(_LENGTHS)
    assert found.windows == len(_LENGTHS)
    assert found.model.perplexity == pytest.approx(perplexity(tiny), rel=1e-4)
    assert found.model.tokens_per_second > 0
    assert (found.reference, found.divergence) == (None, None)


def test_a_model_does_not_differ_from_itself(tiny: Path) -> None:
    found = evaluate(open_model(tiny), _WINDOWS, _F32, reference_config(_F32, "f32"))
    assert found.reference is not None
    assert found.reference.perplexity == found.model.perplexity
    assert found.divergence == LogitsDivergence(0.0, 0.0, 1.0)


@pytest.mark.parametrize("deterministic", [False, True])
def test_chunks_do_not_matter(tiny: Path, deterministic: bool) -> None:
    model = open_model(tiny)
    found = [
        evaluate(model, _WINDOWS, config(token_budget=budget, deterministic=deterministic))
        for budget in (1, 7, 64, 10**9)
    ]
    expected = found[-1]
    for each in found:
        assert each.tokens == expected.tokens
        assert each.model.perplexity == pytest.approx(expected.model.perplexity, rel=1e-5)
    assert expected.model.perplexity == pytest.approx(perplexity(tiny), rel=1e-4)


@pytest.mark.parametrize("budget", [1, 7, 64, 10**9])
def test_divergences_are_those_of_numpy(
    tiny: Path, tmp_path: Path, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sets of weights are in the place of two precisions: their distance is large."""
    save_tiny("llama-biases", tmp_path)
    models = iter([open_model(tiny), open_model(tmp_path)])
    monkeypatch.setattr(
        "sarathi.engine.text_evaluation.load_executor",
        lambda model, *args: load_executor(next(models), *args),
    )
    own = config(token_budget=budget)
    found = evaluate(open_model(tiny), _WINDOWS, own, reference_config(own, "f32"))

    logits, reference = (np.concatenate(transformers_logits(path)) for path in (tiny, tmp_path))
    log_p = reference - np.log(np.exp(reference).sum(axis=1, keepdims=True))
    log_q = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    divergences = np.sort((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
    p99 = divergences[int(np.ceil(0.99 * len(divergences))) - 1]
    equal = (logits.argmax(axis=1) == reference.argmax(axis=1)).mean()
    assert found.divergence is not None
    assert found.divergence.kl_mean == pytest.approx(divergences.mean(), rel=1e-3)
    assert found.divergence.kl_p99 == pytest.approx(p99, rel=1e-3)
    assert found.divergence.top1_agreement == pytest.approx(equal)
    assert found.reference is not None
    assert found.model.perplexity == pytest.approx(perplexity(tiny), rel=1e-4)
    assert found.reference.perplexity == pytest.approx(perplexity(tmp_path), rel=1e-4)


class TestTokenDistributions:
    def test_small_divergences_are_not_lost_in_rounding(self) -> None:
        rng = np.random.default_rng(0)
        logits = 10 * rng.standard_normal((20, 5000)).astype(np.float32)
        changed = logits + 0.01 * rng.standard_normal(logits.shape).astype(np.float32)
        p, q = (torch.log_softmax(torch.tensor(x).double(), 1) for x in (logits, changed))
        expected = (p.exp() * (p - q)).sum(1).numpy()
        found = TokenDistributions.of(changed).divergences_from(TokenDistributions.of(logits))
        assert expected.max() < 1e-4
        np.testing.assert_allclose(found, expected, rtol=0.01, atol=1e-6)

    def test_large_logits_do_not_overflow(self) -> None:
        logits = np.array([[3e38, 0.0, -3e37], [1e4, 1e4, -1e4]], np.float32)
        found = TokenDistributions.of(logits)
        np.testing.assert_allclose(found.losses(np.array([0, 1])), [0.0, np.log(2)])
        assert found.divergences_from(found).tolist() == [0.0, 0.0]
        assert found.likeliest.tolist() == [0, 0]


def test_logits_that_are_not_finite_are_an_error(tiny: Path, monkeypatch: Any) -> None:
    def with_nan(self: Any, step: Any) -> np.ndarray[Any, Any]:
        logits = run(self, step).copy()
        logits[-1:, 5] = np.nan
        return logits

    run = text_evaluation._Served.run
    monkeypatch.setattr(text_evaluation._Served, "run", with_nan)
    with pytest.raises(ExecutorError, match="not finite in f32"):
        evaluate(open_model(tiny), _WINDOWS, _F32)


@pytest.mark.parametrize(
    ("windows", "error", "message"),
    [
        ([], ConfigError, "no token to predict"),
        ([[5, 6], [5]], ConfigError, "at least 2 tokens"),
        ([[5] * 513], ConfigError, "window is 513 tokens, .* at most 512"),
        ([[5, 256]], ModelError, "the token 256, .* only 0 to 255"),
    ],
)
def test_windows_are_checked(
    tiny: Path, windows: list[list[int]], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        evaluate(open_model(tiny), windows, _F32)


class TestWindows:
    def test_the_text_is_cut_and_a_single_token_left_out(self, tiny: Path) -> None:
        tokenizer = open_tokenizer(tiny)
        ids = tokenizer.encode("abcdefghi")
        windows = cut_into_windows(tokenizer, "abcdefghi", 4)
        assert windows == [ids[:4], ids[4:8]]
        assert cut_into_windows(tokenizer, "abcdefghi", 4, max_tokens=6) == [ids[:4], ids[4:6]]
        assert cut_into_windows(tokenizer, "", 4) == []
        assert cut_into_windows(tokenizer, "a", 4) == []

    def test_each_begins_as_the_model_expects(self, tiny: Path, tmp_path: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name).write_bytes((tiny / name).read_bytes())
        tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
        special = {"SpecialToken": {"id": "<s>", "type_id": 0}}
        text = {"Sequence": {"id": "A", "type_id": 0}}
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [special, text],
            "pair": [special, text],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        }
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
        found = open_tokenizer(tmp_path)
        [first, *ids] = found.encode("abcde")
        assert first == 0
        # The token that would be left over is predicted from the special one.
        assert cut_into_windows(found, "abcde", 3) == [[0, *ids[:2]], [0, *ids[2:4]], [0, ids[4]]]
        with pytest.raises(ConfigError, match="window is 1 tokens, expected at least 2"):
            cut_into_windows(found, "abcde", 1)


def compared(served: EngineConfig) -> LogitsDivergence:
    """The distance of SmolLM2-135M from itself in f32, on a part of the text."""
    path = locate("smollm2-135m").path
    windows = cut_into_windows(open_tokenizer(path), builtin_text(), 128, max_tokens=256)
    found = evaluate(open_model(path), windows, served, reference_config(served, "f32"))
    assert found.model.precision == served.precision
    assert found.model.kv_precision == (served.kv_precision or served.precision)
    assert found.reference is not None
    assert (found.reference.precision, found.reference.kv_precision) == ("f32", "f32")
    assert 15 < found.reference.perplexity < 60
    assert found.model.perplexity == pytest.approx(found.reference.perplexity, rel=0.02)
    assert found.divergence is not None
    return found.divergence


def test_a_real_model_with_a_quantised_cache() -> None:
    found = compared(EngineConfig(precision="f32", kv_precision="u8"))
    assert 0 < found.kl_mean < 0.001
    assert found.kl_mean < found.kl_p99 < 0.01
    assert found.top1_agreement > 0.97


@pytest.mark.skipif("bf16" not in supported_precisions(), reason="the processor lacks bf16")
def test_a_real_model_in_bfloat16() -> None:
    found = compared(EngineConfig(precision="bf16"))
    assert 1e-4 < found.kl_mean < 0.002
    assert found.top1_agreement > 0.95


def test_the_builtin_text_is_long_enough() -> None:
    text = builtin_text()
    assert len(text.split()) > 1500
    assert "def " in text
