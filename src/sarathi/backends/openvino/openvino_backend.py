"""What the OpenVINO backend can do, see `executor.Backend`."""

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
from sarathi.backends.options import ExecutorOptions, KvPrecision, Precision
from sarathi.backends.runner import InlineRunner, Runner
from sarathi.models.model import Model
from sarathi.system.machine import available_memory


class OpenVinoBackend:
    """Executors on the CPU, one for a stage."""

    process_groups = None

    def choose_precisions(self, options: ExecutorOptions) -> tuple[Precision, KvPrecision]:
        return choose_precisions(options.precision, options.kv_precision)

    def uses_gpu(self, options: ExecutorOptions) -> bool:
        return False

    def gpu_names(self, options: ExecutorOptions) -> list[str]:
        return []

    def gpu_memory(self, options: ExecutorOptions) -> tuple[int, ...]:
        return ()

    def block_size(self, options: ExecutorOptions) -> int:
        return BLOCK_SIZE

    def create_executor(
        self,
        model: Model,
        options: ExecutorOptions,
        part: ExecutorPart,
        on_progress: ProgressCallback,
    ) -> OpenVinoExecutor:
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

    def free_memory(
        self, executor: Executor, options: ExecutorOptions, local_rank: int
    ) -> DeviceMemory:
        return DeviceMemory(platform.node(), available_memory(), shared=True)


BACKEND: Backend = OpenVinoBackend()  # has no state
