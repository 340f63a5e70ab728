"""Steps for driving an executor without a scheduler."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from perf.prompts import random_prompts
from perf.report import MODEL
from sarathi.backends.executor import ExecutorPart
from sarathi.backends.openvino.openvino_executor import BLOCK_SIZE, OpenVinoExecutor
from sarathi.backends.registry import ExecutorOptions
from sarathi.backends.step import Step, StepPart, join_parts
from sarathi.models.decoder import whole_model
from sarathi.models.locate import locate
from sarathi.models.model import open_model


def open_executor(max_tokens: int) -> OpenVinoExecutor:
    """Load the demo model with so many tokens of KV cache, in the default precision."""
    model = open_model(locate(MODEL).path)
    length = model.config.max_position
    options = ExecutorOptions(max_position=length, max_tokens=length)
    executor = OpenVinoExecutor(model, options, ExecutorPart(whole_model(model.config)))
    executor.allocate(-(-max_tokens // BLOCK_SIZE))
    return executor


def prefill_steps(length: int, chunk: int) -> Iterator[Step]:
    """A prompt of `length` tokens in chunks, of which the last samples."""
    [prompt] = random_prompts(1, length)
    blocks = range(-(-length // BLOCK_SIZE))
    for start in range(0, length, chunk):
        part = StepPart(prompt[start : start + chunk], start, blocks, start + chunk >= length)
        yield join_parts([part], BLOCK_SIZE)


def prompt_step(length: int) -> Step:
    """A whole prompt of random tokens, which samples."""
    tokens = np.random.default_rng(0).integers(5, 1000, length).tolist()
    return join_parts([StepPart(tokens, 0, range(-(-length // BLOCK_SIZE)), True)], BLOCK_SIZE)


def median_seconds(executors: Sequence[OpenVinoExecutor], step: Step, runs: int) -> list[float]:
    """The median time of a step on each executor, all in turns."""
    seconds: list[list[float]] = [[] for _ in executors]
    for turn in range(runs + 1):
        for executor, times in zip(executors, seconds, strict=True):
            began = time.perf_counter()
            executor.execute(step)
            if turn:  # the first adapts to the shape
                times.append(time.perf_counter() - began)
    return [float(np.median(times)) for times in seconds]
