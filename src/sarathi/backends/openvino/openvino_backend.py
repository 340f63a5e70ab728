"""The OpenVINO backend, as `registry.load_backend` makes it."""

from __future__ import annotations

import platform

from sarathi.backends.executor import (
    Backend,
    DeviceMemory,
    Executor,
    ExecutorPart,
    ProgressCallback,
)
from sarathi.backends.openvino.openvino_executor import (
    BLOCK_SIZE,
    OpenVinoExecutor,
    choose_precisions,
)
from sarathi.backends.registry import ExecutorOptions, KvPrecision, Precision
from sarathi.backends.runner import InlineRunner, Runner
from sarathi.models.model import Model
from sarathi.system.machine import available_memory


class OpenVinoBackend(Backend):
    """Executors on the CPU, one for each stage."""

    uses_gpu = False
    gpu_names = ()
    gpu_memory = ()
    block_size = BLOCK_SIZE
    process_groups = None

    def __init__(self, options: ExecutorOptions) -> None:
        self._options = options

    def choose_precisions(self) -> tuple[Precision, KvPrecision]:
        return choose_precisions(self._options.precision, self._options.kv_precision)

    def create_executor(
        self, model: Model, part: ExecutorPart, on_progress: ProgressCallback
    ) -> OpenVinoExecutor:
        options = self._options
        return OpenVinoExecutor(
            model.config,
            model.weights,
            stage=part.stage,
            max_position=options.max_position,
            precision=options.precision,
            kv_precision=options.kv_precision,
            num_threads=part.threads,
            deterministic=options.deterministic,
            bind_threads=part.stage.first and part.stage.last,
            on_progress=on_progress,
        )

    def create_runner(self, executor: Executor) -> Runner:
        assert isinstance(executor, OpenVinoExecutor)
        return InlineRunner(executor, executor.make_sampler())

    def free_memory(self, executor: Executor, local_rank: int) -> DeviceMemory:
        return DeviceMemory(platform.node(), available_memory(), shared=True)
