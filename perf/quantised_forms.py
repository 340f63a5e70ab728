"""What does each way of serving quantised weights cost in time, memory and quality?

Usage: python -m perf.quantised_forms [MODEL ...] [--tokens N]

The executors of one model run the same steps in turns. The table is that of docs/quantization.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from perf.report import MODEL, rounds
from sarathi.backends.executor import ExecutorPart
from sarathi.backends.openvino.openvino_executor import BLOCK_SIZE, OpenVinoExecutor
from sarathi.backends.registry import ExecutorOptions, Quantization
from sarathi.backends.step import Step, StepPart, join_parts
from sarathi.engine.config import EngineConfig
from sarathi.engine.text_evaluation import (
    builtin_text,
    cut_into_windows,
    evaluate,
    reference_config,
)
from sarathi.models.decoder import whole_model
from sarathi.models.locate import locate
from sarathi.models.model import Model, open_model, open_tokenizer

MODELS = (MODEL, "gemma3-270m")
WAYS: tuple[Quantization, ...] = ("none", "exact", "int8", "int4")
_CONTEXT = 100  # tokens of each decode
_WINDOW = 512
# Tokens of one prompt, or minus the number of decodes, and how often each is run.
_STEPS = {"decode of 1": (-1, 40), "decodes of 16": (-16, 20), "prompt of 256": (256, 7)}
_MAX_TOKENS = 1024  # that the KV cache of an executor has to hold


def make_step(tokens: int) -> Step:
    """A step with so many tokens of one prompt or, if negative, decodes."""
    if tokens > 0:
        ids = np.random.default_rng(0).integers(5, 1000, tokens).tolist()
        return join_parts([StepPart(ids, 0, range(-(-tokens // BLOCK_SIZE)), True)], BLOCK_SIZE)
    each = -(-(_CONTEXT + 1) // BLOCK_SIZE)
    shared = range(each - 1)  # blocks; each decode has its own last one
    parts = [StepPart([7 + i], _CONTEXT, [*shared, each + i], True) for i in range(-tokens)]
    return join_parts(parts, BLOCK_SIZE)


def load(model: Model, way: Quantization) -> OpenVinoExecutor:
    length = min(model.config.max_position, _MAX_TOKENS)
    options = ExecutorOptions(max_position=length, max_tokens=length, quantization=way)
    executor = OpenVinoExecutor(model, options, ExecutorPart(whole_model(model.config)))
    executor.allocate(-(-_MAX_TOKENS // BLOCK_SIZE))
    with executor.warming_up():
        executor.check()
        for tokens, _ in _STEPS.values():
            executor.execute(make_step(tokens))
    return executor


def median_seconds(executors: Sequence[OpenVinoExecutor], tokens: int, runs: int) -> list[float]:
    """The time of a step on each executor, all in turns."""
    step = make_step(tokens)
    seconds: list[list[float]] = [[] for _ in executors]
    for _ in range(runs):
        for executor, times in zip(executors, seconds, strict=True):
            began = time.perf_counter()
            executor.execute(step)
            times.append(time.perf_counter() - began)
    return [float(np.median(times)) for times in seconds]


def measure(name: str, tokens: int) -> Table:
    path = locate(name).path
    model, tokenizer = open_model(path), open_tokenizer(path)
    executors = [load(model, way) for way in rounds(WAYS, f"loading {name}")]
    times = [
        median_seconds(executors, *step) for step in rounds(_STEPS.values(), f"steps of {name}")
    ]
    sizes = [executor.weight_bytes for executor in executors]
    del executors
    windows = cut_into_windows(tokenizer, builtin_text(), _WINDOW, tokens)
    table = Table(title=f"{name}, in {EngineConfig().precision or 'the default precision'}")
    for column in ("--quantization", "weights", *_STEPS, "perplexity", "KL mean", "top-1 equal"):
        table.add_column(column, justify="right")
    for number, way in enumerate(rounds(WAYS, f"quality of {name}")):
        config = EngineConfig(quantization=way, kv_cache_memory=2**30)
        found = evaluate(model, windows, config, reference_config(config, "f32"))
        assert found.divergence is not None
        table.add_row(
            way,
            f"{sizes[number] / 1e6:.0f} MB",
            *(f"{1e3 * each[number]:.1f} ms ({each[number] / each[0]:.2f})" for each in times),
            f"{found.model.perplexity:.2f}",
            f"{found.divergence.kl_mean:.5f}",
            f"{found.divergence.top1_agreement:.1%}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--tokens", type=int, default=1000, help="of the text for the quality")
    arguments = parser.parse_args()
    for name in arguments.models:
        Console(width=160).print(measure(name, arguments.tokens))


if __name__ == "__main__":
    main()
