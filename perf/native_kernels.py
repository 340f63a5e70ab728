"""How much faster are steps with native operations than with those of OpenVINO's plugin?

Usage: python -m perf.native_kernels [MODEL]

The same weights and steps in turns; a second executor with the plugin's shows the noise.
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from perf.report import MODEL, rounds
from perf.steps import median_seconds, prompt_step
from sarathi.backends.executor import ExecutorPart
from sarathi.backends.openvino.openvino_executor import BLOCK_SIZE, OpenVinoExecutor
from sarathi.backends.registry import Kernels
from sarathi.backends.step import Step, StepPart, join_parts
from sarathi.engine.config import EngineConfig
from sarathi.engine.startup.load import executor_options, with_quantization
from sarathi.models.decoder import whole_model
from sarathi.models.locate import locate
from sarathi.models.model import open_model

ALTERNATIVES: tuple[Kernels, ...] = ("plugin", "native", "plugin")
_SEQUENCES, _LENGTH = 64, 2048
_BLOCKS = 33  # of each sequence


def decodes(count: int, context: int) -> Step:
    parts = [
        StepPart([7 + i], context, range(i * _BLOCKS, (i + 1) * _BLOCKS), True)
        for i in range(count)
    ]
    return join_parts(parts, BLOCK_SIZE)


# A step, and how often each executor runs it.
STEPS = {
    "decode of 1 at 100": (decodes(1, 100), 41),
    "decodes of 16 at 1000": (decodes(16, 1000), 15),
    "decodes of 64 at 1000": (decodes(64, 1000), 11),
    "prompt of 256": (prompt_step(256), 11),
    "prompt of 2000": (prompt_step(2000), 5),
}


def load(name: str, kernels: Kernels) -> OpenVinoExecutor:
    model = open_model(locate(name).path)
    config = EngineConfig(kernels=kernels, max_model_len=_LENGTH, kv_precision="u8")
    options = with_quantization(executor_options(config, _LENGTH), model, 1)
    executor = OpenVinoExecutor(model, options, ExecutorPart(whole_model(model.config)))
    executor.allocate(_SEQUENCES * _BLOCKS)
    with executor.warming_up():
        executor.check()
        executor.execute(prompt_step(_BLOCKS * BLOCK_SIZE))
    for cache in executor._caches:  # each sequence reads memory of its own
        sequences = cache.data.reshape(_SEQUENCES, -1)
        sequences[1:] = sequences[0]
    return executor


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else MODEL
    executors = [load(name, each) for each in rounds(ALTERNATIVES, f"loading {name}")]
    table = Table(title=f"{name}, weights in {executors[0].precision}, cache in u8, medians")
    for column in ("step", *ALTERNATIVES, "plugin / native"):
        table.add_column(column, justify="right")
    for title in rounds(STEPS, "steps"):
        times = median_seconds(executors, *STEPS[title])
        ratio = (times[0] + times[2]) / 2 / times[1]
        table.add_row(title, *(f"{1e3 * each:.1f} ms" for each in times), f"{ratio:.2f}")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
