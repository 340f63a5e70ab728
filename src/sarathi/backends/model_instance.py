"""A loaded model: in this process alone, or spread over many (`parallel.pipeline`)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import threading
import time
from contextlib import AbstractContextManager
from importlib import metadata

import msgspec

import sarathi
from sarathi.backends import registry
from sarathi.backends.executor import Executor, ExecutorPart, ProgressCallback
from sarathi.backends.footprint import check_memory, weight_bytes
from sarathi.backends.parallel.rank_layout import RankId
from sarathi.backends.quantization import served_forms
from sarathi.backends.runner import Runner
from sarathi.models.decoder import whole_model
from sarathi.models.model import Model
from sarathi.models.tensor_layout import expected_shapes
from sarathi.system.machine import available_memory

_PROGRESS_INTERVAL = 0.5  # seconds between two calls of a progress callback


class InstancePart(msgspec.Struct, frozen=True):
    """What one process has loaded."""

    rank_id: RankId
    host: str  # the name of its machine
    memory: str  # whose memory it uses: the machine's, or that of a device there
    free: int  # bytes of that memory, after the weights have been loaded
    shared: bool  # whether other processes use it, too, so that not all of it may be taken
    weight_bytes: int
    block_bytes: int  # of a KV block, over its layers and heads
    block_size: int  # tokens
    precision: registry.Precision
    kv_precision: registry.KvPrecision
    seconds: float  # of loading
    kernels: str = ""  # see `Executor`
    warnings: tuple[str, ...] = ()


def load_executor(
    model: Model,
    options: registry.ExecutorOptions,
    part: ExecutorPart,
    on_progress: ProgressCallback,
    *,
    local_world_size: int = 1,
) -> Executor:
    """Load a part of a model, once it is known that its weights fit into memory.

    Args:
        local_world_size: processes of this engine on this machine.
        on_progress: called now and then, from any thread, with the share of weights that is read.

    Raises:
        ExecutorError: the machine cannot run it or has too little memory for it, or the library
            for it is not installed.
        ModelError: the checkpoint does not contain what its configuration requires.
    """
    backend = registry.load_backend(options)
    if not backend.uses_gpu:  # whose library raises this error by itself
        precision, _ = backend.choose_precisions()
        forms = served_forms(model, options.quantization)
        each = weight_bytes(model.config, part.stage, part.shard, precision, forms)
        check_memory(local_world_size * each, available_memory())
    return backend.create_executor(model, part, _rate_limited(on_progress))


def describe(executor: Executor, rank_id: RankId, seconds: float) -> InstancePart:
    """Return the description of an executor that took so many seconds to load."""
    memory = executor.free_memory()
    return InstancePart(
        rank_id=rank_id,
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
        kernels=executor.kernels,
        warnings=executor.warnings,
    )


def fingerprint(model: Model) -> str:
    """Hash the configuration, and the tensors' shapes and types, but not their values, to compare
    what processes load independently."""
    config = dataclasses.asdict(model.config)
    # Machines may differ in the last bit of what they compute from the checkpoint's numbers.
    for field in ("inv_freq", "local_inv_freq"):
        config[field] = [f"{value:.9g}" for value in config[field]]
    tensors = {
        name: (shape, model.weights.stored_type(name))
        for name, shape in expected_shapes(model.config, whole_model(model.config)).items()
    }
    text = json.dumps([config, tensors], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def versions(executor: registry.ExecutorName) -> str:
    """Return the versions of this project and of the library that an executor computes with."""
    try:
        found = metadata.version(registry.BACKENDS[executor].library)
    except metadata.PackageNotFoundError:  # installed in another way, such as a system package
        found = "unknown"
    return f"sarathi {sarathi.__version__}, {executor} {found}"


class SingleProcess:
    """A loaded model, here one executor that has all of it. It is given a KV cache before it runs
    steps."""

    def __init__(
        self, model: Model, options: registry.ExecutorOptions, on_progress: ProgressCallback
    ) -> None:
        """Load the model; arguments and errors are those of `load_executor`."""
        start = time.monotonic()
        part = ExecutorPart(whole_model(model.config), threads=options.threads)
        executor = load_executor(model, options, part, on_progress)
        self.max_position = executor.max_position  # tokens of the longest sequence
        rank_id, seconds = RankId(0, 0), time.monotonic() - start
        # Of every process, in the order of the layout's ranks.
        self.parts: tuple[InstancePart, ...] = (describe(executor, rank_id, seconds),)
        self.runner: Runner = executor.make_runner()
        self._executor = executor

    def allocate(self, num_blocks: int) -> None:
        """As `Executor.allocate`, in every process; `ExecutorError` also if one has died."""
        self._executor.allocate(num_blocks)

    def check_computing(self) -> None:
        """As `Executor.check`, every process for its part; likewise."""
        self._executor.check()

    def warming_up(self) -> AbstractContextManager[None]:
        """As `Executor.warming_up`, in every process."""
        return self._executor.warming_up()

    def close(self) -> None:
        """End the processes. Harmless twice."""
        self.runner.close()


def _rate_limited(on_progress: ProgressCallback) -> ProgressCallback:
    """Return a callback for many threads that calls `on_progress` one at a time, now and then."""
    lock = threading.Lock()
    last = time.monotonic()

    def limited(share: float) -> None:
        nonlocal last
        with lock:
            now = time.monotonic()
            if now > last + _PROGRESS_INTERVAL:
                last = now
                on_progress(share)

    return limited
