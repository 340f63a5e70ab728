"""All that computes one model: one executor in this process, or many processes."""

from __future__ import annotations

import platform
import time
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

from sarathi.backends.executor import Executor
from sarathi.backends.load_progress import ProgressCallback
from sarathi.backends.options import KvPrecision, Precision
from sarathi.backends.parallel.rank_layout import RankId
from sarathi.backends.registry import (
    DeviceMemory,
    ExecutorOptions,
    create_executor,
    create_runner,
    free_memory,
)
from sarathi.backends.runner import Runner
from sarathi.models.model import Model
from sarathi.models.model_config import ModelConfig


class InstancePart(msgspec.Struct, frozen=True):
    """What one process has loaded."""

    place: RankId
    host: str  # the name of its machine
    memory: str  # whose memory it uses: the machine's, or that of a device there
    free: int  # bytes of that memory, now that the weights are there
    shared: bool  # whether others take from it, too, so that not all of it is to be had
    weight_bytes: int
    block_bytes: int  # of a KV block, over its layers and heads
    block_size: int  # tokens
    precision: Precision
    kv_precision: KvPrecision
    seconds: float  # that loading took


class ModelInstance(Protocol):
    """A loaded model, which is given a KV cache before it runs steps."""

    parts: tuple[InstancePart, ...]  # of every process, in the order of the layout's places
    config: ModelConfig
    max_position: int  # tokens of the longest sequence

    @property
    def runner(self) -> Runner: ...

    def allocate(self, num_blocks: int) -> None:
        """Make room for so many KV blocks in every process, in place of those there were.

        Raises:
            ExecutorError: a process has not as much memory, has failed or died.
        """

    def check_computing(self) -> None:
        """As `Executor.check`, every process for its part.

        Raises:
            ExecutorError: one computes something else, has failed or died.
        """

    def warming_up(self) -> AbstractContextManager[None]:
        """As `Executor.warming_up`, in every process."""

    def close(self) -> None:
        """End the processes. Harmless twice."""


def describe(
    executor: Executor, place: RankId, memory: DeviceMemory, seconds: float
) -> InstancePart:
    """
    Args:
        memory: what it has for a KV cache.
        seconds: that loading it took.
    """
    return InstancePart(
        place=place,
        host=platform.node(),
        memory=memory.name,
        free=memory.free,
        shared=memory.shared,
        weight_bytes=executor.weight_bytes,
        block_bytes=executor.block_bytes,
        block_size=executor.block_size,
        precision=executor.precision,
        kv_precision=executor.kv_precision,
        seconds=seconds,
    )


class SingleProcess:
    """One executor that has the whole model."""

    def __init__(self, model: Model, options: ExecutorOptions, tell: ProgressCallback) -> None:
        """Load it.

        Args:
            tell: as `create_executor` takes it.

        Raises:
            ExecutorError, ModelError: as `create_executor` does.
        """
        began = time.monotonic()
        executor = create_executor(model, options, threads=options.threads, tell=tell)
        seconds = time.monotonic() - began
        self.config = executor.config
        self.max_position = executor.max_position
        self.parts: tuple[InstancePart, ...] = (
            describe(executor, RankId(0, 0), free_memory(executor, options), seconds),
        )
        self.runner = create_runner(executor)
        self._executor = executor

    def allocate(self, num_blocks: int) -> None:
        self._executor.allocate(num_blocks)

    def check_computing(self) -> None:
        self._executor.check()

    def warming_up(self) -> AbstractContextManager[None]:
        return self._executor.warming_up()

    def close(self) -> None:
        self.runner.close()
