"""Log probabilities of prompts are those of `transformers` in float32, however computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from sarathi.engine.llm import LLM
from sarathi.sampling.logprobs import TokenLogprobs
from sarathi.sampling.params import SamplingParams
from tests.tiny_models import save_tiny

_PROMPTS = [[(7 * i + j) % 254 + 2 for j in range(n)] for i, n in enumerate((5, 61, 17, 190, 1))]
_SCORED = SamplingParams(max_tokens=0, prompt_logprobs=3)
_OPTIONS: dict[str, Any] = {
    "precision": "f32", "threads": 1, "token_budget": 24, "max_model_len": 256, "max_batch_size": 8,
}  # fmt: skip

Scores = list[list[TokenLogprobs | None]]


def scores(path: Path, params: SamplingParams = _SCORED, **changes: Any) -> Scores:
    llm = LLM(str(path), **{**_OPTIONS, **changes})
    try:
        found = [output.prompt_logprobs for output in llm.generate(_PROMPTS, params)]
        assert all(entries is not None for entries in found)
        return [entries for entries in found if entries is not None]
    finally:
        llm._core.close()


def check(path: Path, found: Scores) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    for prompt, entries in zip(_PROMPTS, found, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt]), use_cache=False).logits[0].double()
        logprobs = torch.log_softmax(logits, -1).numpy()
        assert len(entries) == len(prompt)
        assert entries[0] is None
        for position, entry in enumerate(entries[1:], 1):
            assert entry is not None
            row = logprobs[position - 1]
            assert entry.logprob == pytest.approx(row[prompt[position]], abs=2e-3)
            largest = np.sort(row)[::-1][: len(entry.top_ids)]
            np.testing.assert_allclose(entry.top_logprobs, largest, atol=2e-3)
            np.testing.assert_allclose(row[entry.top_ids], largest, atol=2e-3)


@pytest.mark.parametrize("executor", ["openvino", "torch"])
def test_equal_to_transformers(tmp_path: Path, executor: str) -> None:
    save_tiny("llama", tmp_path)
    options: dict[str, Any] = {"executor": executor}
    if executor == "torch":
        options["device"] = "cpu"
    check(tmp_path, scores(tmp_path, **options))
    beside_decodes = SamplingParams(
        max_tokens=12, temperature=0, prompt_logprobs=3, ignore_eos=True, logprobs=1
    )
    check(tmp_path, scores(tmp_path, beside_decodes, token_budget=300, **options))


def test_stages(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, num_layers=2)
    check(tmp_path, scores(tmp_path, pp=2))
