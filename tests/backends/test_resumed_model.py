"""The same on a real model: what another engine continues is recomputed exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from sarathi.backends.openvino.openvino_executor import OpenVinoExecutor
from sarathi.sampling.params import SamplingParams
from tests import tiny_models
from tests.backends.engines import engine, load

PROMPT = [(7 * position) % 250 + 2 for position in range(45)]
PARAMS = {
    "greedy": SamplingParams(temperature=0, max_tokens=40, logprobs=1),
    "seeded": SamplingParams(temperature=1.0, seed=3, max_tokens=40, top_p=0.95),
    "penalised": SamplingParams(
        temperature=0.8, seed=4, max_tokens=40, repetition_penalty=1.3, presence_penalty=0.5
    ),
}


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> OpenVinoExecutor:
    folder: Path = tmp_path_factory.mktemp("model")
    tiny_models.save_tiny("llama", folder)
    return load(folder)


@pytest.mark.parametrize("name", PARAMS)
def test_from_any_token_on_the_rest_is_the_same(executor: OpenVinoExecutor, name: str) -> None:
    def outputs(before: list[int]) -> list[int]:
        core = engine(executor, budget=32)
        core.submit(1, PROMPT, PARAMS[name], arrival=0.0, output_ids=before)
        tokens = []
        while core.has_work:
            tokens += [output.token for output in core.step().outputs]
        return tokens

    whole = outputs([])
    assert len(whole) == 40
    for cut in range(1, 40, 6):
        assert outputs(whole[:cut]) == whole[cut:]
