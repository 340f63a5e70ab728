"""Steps for driving an executor without a scheduler."""

from __future__ import annotations

from collections.abc import Iterator

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
