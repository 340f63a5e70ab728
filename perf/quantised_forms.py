"""What does each way of serving quantised weights cost in time, memory and quality?

Usage: python -m perf.quantised_forms [MODEL ...] [--tokens N]

The executors of one model run the same steps in turns. The table is that of docs/quantization.md.
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from perf.report import MODEL, rounds
from perf.steps import median_seconds, prompt_step
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
_MAX_TOKENS = 1024  # that the KV cache of an executor has to hold


def decodes(count: int) -> Step:
    """A step of decodes that share all blocks of their contexts but the last."""
    each = -(-(_CONTEXT + 1) // BLOCK_SIZE)
    shared = range(each - 1)
    parts = [StepPart([7 + i], _CONTEXT, [*shared, each + i], True) for i in range(count)]
    return join_parts(parts, BLOCK_SIZE)


# A step, and how often each executor runs it.
_STEPS = {
    "decode of 1": (decodes(1), 40),
    "decodes of 16": (decodes(16), 20),
    "prompt of 256": (prompt_step(256), 7),
}


def load(model: Model, way: Quantization) -> OpenVinoExecutor:
    length = min(model.config.max_position, _MAX_TOKENS)
    options = ExecutorOptions(max_position=length, max_tokens=length, quantization=way)
    executor = OpenVinoExecutor(model, options, ExecutorPart(whole_model(model.config)))
    executor.allocate(-(-_MAX_TOKENS // BLOCK_SIZE))
    with executor.warming_up():
        executor.check()
        for step, _ in _STEPS.values():
            executor.execute(step)
    return executor


def measure(name: str, text_tokens: int) -> Table:
    path = locate(name).path
    model, tokenizer = open_model(path), open_tokenizer(path)
    executors = [load(model, way) for way in rounds(WAYS, f"loading {name}")]
    times = [
        median_seconds(executors, *step) for step in rounds(_STEPS.values(), f"steps of {name}")
    ]
    sizes = [executor.weight_bytes for executor in executors]
    del executors
    windows = cut_into_windows(tokenizer, builtin_text(), _WINDOW, text_tokens)
    table = Table(title=f"{name}, in the default precision")
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
