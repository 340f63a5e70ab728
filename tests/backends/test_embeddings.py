"""Embeddings are the last hidden states of `transformers`, pooled, however they are computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import transformers

from sarathi.backends.reference import reference
from sarathi.engine.llm import LLM
from sarathi.models.decoder import whole_model
from sarathi.models.model import open_model
from sarathi.sampling.params import SamplingParams
from tests.tiny_models import save_tiny

_PROMPTS = [[(7 * i + j) % 254 + 2 for j in range(n)] for i, n in enumerate((5, 61, 17, 190, 1))]
_OPTIONS: dict[str, Any] = {
    "precision": "f32", "threads": 1, "token_budget": 24, "max_model_len": 256, "max_batch_size": 8,
}  # fmt: skip


def last_hidden_states(path: Path) -> list[np.ndarray]:
    model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [
            model(torch.tensor([prompt]), use_cache=False).last_hidden_state[0].numpy()
            for prompt in _PROMPTS
        ]


def check(llm: LLM, hidden: list[np.ndarray]) -> None:
    """Of both poolings, twice: the second time, prompts have a cached prefix."""
    for _ in range(2):
        for pooling, pooled in (
            ("last", [states[-1] for states in hidden]),
            ("mean", [states.mean(axis=0) for states in hidden]),
        ):
            expected = [vector / np.linalg.norm(vector) for vector in pooled]
            np.testing.assert_allclose(llm.embed(_PROMPTS, pooling), expected, atol=2e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "falcon-7b"])
@pytest.mark.parametrize("executor", ["openvino", "torch"])
def test_equal_to_transformers(
    tmp_path: Path, family: str, executor: Literal["openvino", "torch"]
) -> None:
    save_tiny(family, tmp_path)
    options: dict[str, Any] = {"device": "cpu"} if executor == "torch" else {}
    llm = LLM(str(tmp_path), executor=executor, **_OPTIONS, **options)
    check(llm, last_hidden_states(tmp_path))


def test_stages(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, num_layers=2)
    llm = LLM(str(tmp_path), pp=2, **_OPTIONS)
    try:
        check(llm, last_hidden_states(tmp_path))
    finally:
        llm._core.close()


def test_the_reference(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    model = open_model(tmp_path)
    for prompt, expected in zip(_PROMPTS, last_hidden_states(tmp_path), strict=True):
        found = reference(
            model.config, whole_model(model.config), model.weights, prompt, with_head=False
        )
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_beside_requests_that_generate(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    llm = LLM(str(tmp_path), **_OPTIONS)
    alone = llm.embed(_PROMPTS, "mean")
    greedy = SamplingParams(max_tokens=15, temperature=0, ignore_eos=True)
    expected = [output.outputs[0].token_ids for output in llm.generate(_PROMPTS, greedy)]
    pooled = SamplingParams(max_tokens=0, pooling="mean")
    jobs = [
        (prompt, params, (index, params))
        for index, prompt in enumerate(_PROMPTS)
        for params in (greedy, pooled)
    ]
    tokens: list[list[int]] = [[] for _ in _PROMPTS]
    vectors: list[list[float]] = [[] for _ in _PROMPTS]
    for (index, params), output, delta in llm._run(jobs):
        if params is greedy:
            tokens[index] += delta.token_ids
        elif output.embedding is not None:
            vectors[index] = np.frombuffer(output.embedding, "<f4").tolist()
    assert tokens == expected
    np.testing.assert_allclose(vectors, alone, atol=1e-5)


def test_similar_sentences_are_closer() -> None:
    llm = LLM("smollm2-135m", threads=1, max_model_len=128, max_batch_size=4)
    texts = [
        "A cat sits on the mat.",
        "A kitten is sitting on a rug.",
        "Stock markets fell sharply on Monday.",
        "Shares dropped at the start of the week.",
    ]
    for pooling in ("last", "mean"):
        vectors = np.array(llm.embed(texts, pooling))  # type: ignore[arg-type]
        likeness = vectors @ vectors.T
        assert np.diag(likeness) == pytest.approx(1)
        assert min(likeness[0, 1], likeness[2, 3]) > likeness[:2, 2:].max()
