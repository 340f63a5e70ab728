"""With fixed chunks and the deterministic executor, answers are the same to the last bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from sarathi.backends.openvino.openvino_executor import OpenVinoExecutor, supported_precisions
from sarathi.backends.self_check import check_deterministic
from sarathi.backends.step import Step
from sarathi.engine.core import EngineCore
from sarathi.errors import ExecutorError
from sarathi.sampling.logprobs import TokenLogprobs
from sarathi.sampling.params import SamplingParams
from tests import tiny_models
from tests.backends.engines import engine, load
from tests.backends.natives import needs_native

WATCHED = 1000  # the id of the request whose answers are compared
CHUNK = 64
COUNT = 40  # of its tokens


@pytest.fixture(
    scope="module",
    params=[
        *(p for p in ("f32", "bf16", "u8") if p in (*supported_precisions(), "u8")),
        pytest.param("native", marks=needs_native),
    ],
)
def executor(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> OpenVinoExecutor:
    folder = tmp_path_factory.mktemp("model")
    tiny_models.save_tiny("llama", folder)
    options: dict[str, Any] = {"precision": request.param}
    if request.param == "u8":
        options = {"kv_precision": "u8", "kernels": "plugin"}
    elif request.param == "native":
        options = {"kv_precision": "u8", "kernels": "native"}
    return load(folder, deterministic=True, **options)


Generated = tuple[int, TokenLogprobs | None]


def answer(core: EngineCore, prompt: list[int], mates: random.Random | None) -> list[Generated]:
    """Tokens with log probabilities of a prompt, among others that come and go at random."""
    params = SamplingParams(max_tokens=COUNT, temperature=1.0, seed=3, logprobs=5)
    core.submit(WATCHED, prompt, params, arrival=5.0)
    generated: list[Generated] = []
    name = 0
    while len(generated) < COUNT:
        if mates is not None and mates.random() < 0.3:
            length = mates.choice([1, 2, 31, 100, 200])
            other = SamplingParams(max_tokens=mates.choice([1, 20]), temperature=0)
            core.submit(name, [mates.randrange(2, 200) for _ in range(length)], other, float(name))
            name += 1
        outputs = core.step().outputs
        generated += [(output.token, output.logprobs) for output in outputs if output.id == WATCHED]
    while core.has_work:
        core.step()
    return generated


@pytest.mark.parametrize("length", [1, 64, 65, 200])
def test_whatever_else_is_running(executor: OpenVinoExecutor, length: int) -> None:
    prompt = [2 + 7 * position % 190 for position in range(length)]
    alone = answer(engine(executor, deterministic_chunk=CHUNK), prompt, None)
    for seed in range(4):
        core = engine(executor, budget=100 + 50 * seed, deterministic_chunk=CHUNK)
        assert answer(core, prompt, random.Random(seed)) == alone


def test_after_a_preemption(executor: OpenVinoExecutor) -> None:
    prompt = [2 + 7 * position % 190 for position in range(100)]
    alone = answer(engine(executor, deterministic_chunk=CHUNK), prompt, None)
    core = engine(executor, num_blocks=7, deterministic_chunk=CHUNK)
    params = SamplingParams(max_tokens=120, temperature=0)
    core.submit(1, list(range(2, 50)), params, arrival=0.0)
    assert answer(core, prompt, None) == alone
    assert core.stats.preemptions > 0


def test_the_check_passes(executor: OpenVinoExecutor) -> None:
    check_deterministic(executor)


def test_the_check_notices_logits_that_depend_on_the_batch(executor: OpenVinoExecutor) -> None:
    class Moody:
        config = executor.config
        stage = executor.stage
        block_size = executor.block_size
        num_blocks = executor.num_blocks
        max_position = executor.max_position

        def execute(self, step: Step, received: None) -> np.ndarray:
            return executor.execute(step) + np.float32(1e-4) * (len(step.past_lens) > 8)

    with pytest.raises(ExecutorError, match="--deterministic is not possible"):
        check_deterministic(Moody())  # type: ignore[arg-type]
