"""Steps for driving an executor without a scheduler."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.prompts import random_prompts
from benchmarks.report import MODEL
from sarathi.executors.openvino import BLOCK_SIZE, OpenVinoExecutor
from sarathi.executors.step import Step
from sarathi.models.locate import locate
from sarathi.models.model import open_model


def open_executor(max_tokens: int) -> OpenVinoExecutor:
    """The demo model with room for so many tokens in the KV cache, in the default precision."""
    model = open_model(locate(MODEL).path)
    executor = OpenVinoExecutor(model.config, model.weights, max_position=model.config.max_position)
    executor.allocate(-(-max_tokens // BLOCK_SIZE))
    return executor


def prefill_steps(length: int, chunk: int) -> Iterator[Step]:
    """A prompt of `length` tokens in chunks, of which the last samples."""
    [prompt] = random_prompts(1, length)
    ids = np.array(prompt)
    for start in range(0, length, chunk):
        end = min(start + chunk, length)
        yield Step(
            token_ids=ids[start:end],
            positions=np.arange(start, end),
            query_starts=np.array([0, end - start], np.int32),
            past_lens=np.array([start], np.int32),
            block_ids=np.arange(_blocks(end), dtype=np.int32),
            block_starts=np.array([0, _blocks(end)], np.int32),
            sample_rows=np.array([end - start - 1] if end == length else [], np.int64),
        )


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_SIZE)
