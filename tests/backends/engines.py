"""Executors and engines over them, for tests of what a model generates."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sarathi.backends.executor import Executor
from sarathi.backends.runner import InlineRunner
from sarathi.backends.torch.torch_executor import TorchExecutor
from sarathi.engine.core import EngineCore
from sarathi.models.model import open_model
from sarathi.sampling.params import SamplingParams
from sarathi.sampling.sampler import Sampler
from sarathi.scheduler import POLICIES, BlockPool, FixedBudget, Scheduler

if TYPE_CHECKING:
    from sarathi.backends.openvino.openvino_executor import OpenVinoExecutor

NUM_BLOCKS = 64


def load(path: Path, max_position: int = 512, **options: Any) -> OpenVinoExecutor:
    # Here, since machines with a GPU may not have it.
    from sarathi.backends.openvino.openvino_executor import OpenVinoExecutor

    model = open_model(path)
    options = {"precision": "f32", "num_threads": 2, **options}
    executor = OpenVinoExecutor(
        model.config,
        model.weights,
        max_position=max_position,
        **options,
    )
    executor.allocate(NUM_BLOCKS)
    return executor


def load_torch(path: Path, max_position: int = 512, **options: Any) -> TorchExecutor:
    model = open_model(path)
    options = {"precision": "f32", "num_threads": 1, "device": "cpu", **options}
    executor = TorchExecutor(
        model.config,
        model.weights,
        max_position=max_position,
        **options,
    )
    executor.allocate(NUM_BLOCKS)
    return executor


def engine(
    executor: Executor,
    *,
    budget: int = 256,
    num_blocks: int = NUM_BLOCKS,
    max_batch_size: int = 16,
    shuffle: int | None = None,
    policy: str = "sarathi",
    **options: Any,
) -> EngineCore:
    """An engine over `executor`; with `shuffle`, blocks are handed out in a random order."""
    pool = BlockPool(num_blocks, executor.block_size)
    if shuffle is not None:
        random.Random(shuffle).shuffle(pool._empty)
    scheduler = Scheduler(
        pool,
        FixedBudget(budget),
        max_batch_size=max_batch_size,
        max_model_len=executor.max_position,
        policy=POLICIES[policy],
        **options,
    )
    return EngineCore(
        InlineRunner(executor, Sampler(executor.config.vocab_size)), scheduler, eos_ids=()
    )


def run(
    core: EngineCore, prompts: Sequence[Sequence[int]], params: SamplingParams
) -> list[list[int]]:
    """The output tokens of each prompt, all submitted at once."""
    outputs = run_staggered(core, {0: prompts}, params)
    return [outputs[index] for index in range(len(prompts))]


def run_staggered(
    core: EngineCore, arrivals: Mapping[int, Sequence[Sequence[int]]], params: SamplingParams
) -> dict[int, list[int]]:
    """Outputs by request id; `arrivals` has prompts by the iteration before which they arrive."""
    outputs: dict[int, list[int]] = {}
    last = max(arrivals)
    iteration = 0
    while core.has_work or iteration <= last:
        for prompt in arrivals.get(iteration, ()):
            core.submit(len(outputs), list(prompt), params, arrival=float(iteration))
            outputs[len(outputs)] = []
        tokens, failures = core.step()
        assert not failures
        for output in tokens:
            outputs[output.id].append(output.token)
        iteration += 1
    return outputs
