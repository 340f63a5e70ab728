"""A real model answers the same in one process and in several."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from sarathi.engine.llm import LLM
from sarathi.sampling.params import SamplingParams

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived a baker who",
    "def fibonacci(n):",
]
GREEDY = SamplingParams(max_tokens=24, temperature=0)


def answers(**options: Any) -> list[list[int]]:
    llm = LLM("smollm2-135m", precision="f32", token_budget=16, kv_cache_memory=2**26, **options)
    try:
        found = llm.generate(PROMPTS, GREEDY)
        return [output.outputs[0].token_ids for output in found]
    finally:
        del llm
        gc.collect()  # ends the processes


@pytest.fixture(scope="module")
def alone() -> list[list[int]]:
    return answers()


@pytest.mark.parametrize("parts", [{"pp": 2}, {"executor": "torch", "tp": 3}], ids=str)
def test_a_real_model_in_parts(alone: list[list[int]], parts: dict[str, Any]) -> None:
    assert answers(**parts) == alone
    assert len({tuple(tokens) for tokens in alone}) == len(PROMPTS)
