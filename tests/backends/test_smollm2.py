"""A real model, from a quantised file: the same tokens as `transformers` in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from sarathi.models.locate import locate
from sarathi.models.model import open_tokenizer
from sarathi.sampling.params import SamplingParams
from tests.backends.engines import engine, load, run

TEXTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a village by the sea, there lived an old clockmaker who " * 4,
)
OUTPUT = 20


@pytest.fixture(scope="module")
def path() -> Path:
    return locate("smollm2-135m").path


def test_greedy_continuations_equal_transformers(path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    tokenizer = open_tokenizer(path)
    prompts = [tokenizer.encode(text) for text in TEXTS]
    executor = load(path)
    found = run(
        engine(executor, budget=48), prompts, SamplingParams(max_tokens=OUTPUT, temperature=0)
    )
    for prompt, continuation in zip(prompts, found, strict=True):
        with torch.inference_mode():
            ids = torch.tensor([prompt + continuation[:-1]])
            logits = model(ids).logits[0, len(prompt) - 1 :].numpy()
        # Given the tokens before it, each token is the one that transformers would take, too.
        assert logits.argmax(axis=1).tolist() == continuation
        assert len(continuation) == OUTPUT
    assert np.isfinite(logits).all()
