"""Executors and engines over them, for tests of what a model generates."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sarathi.backends.executor import Executor, ExecutorPart
from sarathi.backends.registry import ExecutorOptions
from sarathi.backends.runner import InlineRunner
from sarathi.backends.torch.torch_executor import TorchExecutor
from sarathi.engine.core import EngineCore
from sarathi.models.decoder import whole_model
from sarathi.models.model import Model, open_model
from sarathi.sampling.params import SamplingParams
from sarathi.sampling.sampler import Sampler
from sarathi.scheduler import POLICIES, BlockPool, FixedBudget, Scheduler

if TYPE_CHECKING:
    from sarathi.backends.openvino.openvino_executor import OpenVinoExecutor

NUM_BLOCKS = 64
_PART = {each.name for each in fields(ExecutorPart)}


def load(path: Path, max_position: int = 512, **options: Any) -> OpenVinoExecutor:
    # Here, since machines with a GPU may not have it.
    from sarathi.backends.openvino.openvino_executor import OpenVinoExecutor

    made = _arguments(path, max_position, {"threads": 2, **options})
    executor = OpenVinoExecutor(*made)
    executor.allocate(NUM_BLOCKS)
    return executor


def load_torch(path: Path, max_position: int = 512, **options: Any) -> TorchExecutor:
    made = _arguments(path, max_position, {"threads": 1, "device": "cpu", **options})
    executor = TorchExecutor(*made)
    executor.allocate(NUM_BLOCKS)
    return executor


def _arguments(
    path: Path, max_position: int, options: dict[str, Any]
) -> tuple[Model, ExecutorOptions, ExecutorPart, Callable[[float], None]]:
    """Tell the options of an executor from its part of the model."""
    model = open_model(path)
    on_progress = options.pop("on_progress", lambda share: None)
    part: dict[str, Any] = {"stage": whole_model(model.config)}
    part |= {name: options.pop(name) for name in _PART & options.keys()}
    options = {"precision": "f32", "max_position": max_position, "max_tokens": 256, **options}
    return model, ExecutorOptions(**options), ExecutorPart(**part), on_progress


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
