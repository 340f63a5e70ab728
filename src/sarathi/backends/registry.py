"""The executor that options ask for; the libraries of others are not imported."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from sarathi.backends.executor import Executor
from sarathi.backends.footprint import check_room, weight_bytes
from sarathi.backends.load_progress import CountedWeights, ProgressCallback, rate_limited
from sarathi.backends.options import Device, ExecutorName, KvPrecision, Precision
from sarathi.backends.parallel.rank_layout import ParallelLayout, RankId
from sarathi.backends.runner import InlineRunner, Runner
from sarathi.errors import ExecutorError
from sarathi.models.locate import LoadFormat
from sarathi.models.model import Model
from sarathi.models.tensor_layout import expected_shapes
from sarathi.sampling.sampler import Sampler
from sarathi.system.machine import available_memory

if TYPE_CHECKING:
    from sarathi.backends.torch.process_group import ProcessGroup, Rendezvous

# Seconds that ranks wait for each other. In later stages that includes the time of those before,
# where a long prompt in one piece takes its time. One that dies is noticed sooner, by the engine.
_PATIENCE = 300.0
_JOINING = 60.0  # seconds to reach the first rank, which is there already
_ONE = ParallelLayout(), RankId(0, 0)


class ExecutorOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The same for all stages and ranks."""

    load_format: LoadFormat = "auto"
    executor: ExecutorName = "openvino"
    device: Device | None = None  # of torch; None: cuda if there is one
    precision: Precision | None = None  # None: the fastest that the processor computes in
    kv_precision: KvPrecision | None = None  # None: the same as precision
    threads: int | None = None  # None: all cores of the machine between the processes on it
    deterministic: bool = False
    own_cores: bool = False  # whether all cores of the machine are there for these processes only
    first_gpu: int = 0  # of a machine's, for the first of these processes on it
    max_position: int  # tokens of the longest sequence
    max_tokens: int  # of a step
    max_batch_size: int = 128  # sequences of a step


class DeviceMemory(NamedTuple):
    """What a KV cache is put into."""

    name: str  # of a machine, or of a device in it
    free: int  # bytes
    shared: bool  # whether others take from it, too, so that not all of it is to be had


def choose_precisions(options: ExecutorOptions) -> tuple[Precision, KvPrecision]:
    """Those of weights and computation, and of the cache, that an executor here will have.

    Raises:
        ExecutorError: the machine does not compute in them, or the library is not installed.
    """
    if options.executor == "openvino":
        from sarathi.backends.openvino import openvino_executor as openvino

        return openvino.choose_precisions(options.precision, options.kv_precision)
    with needing_torch():
        from sarathi.backends.torch.torch_devices import default_device, default_precision

    precision = options.precision or default_precision(options.device or default_device())
    return precision, precision


def on_gpu(options: ExecutorOptions) -> bool:
    """Whether an executor here computes on one.

    Raises:
        ExecutorError: the library for it is not installed.
    """
    if options.executor != "torch":
        return False
    with needing_torch():
        from sarathi.backends.torch.torch_devices import default_device

    return (options.device or default_device()) == "cuda"


def device_names(options: ExecutorOptions) -> list[str]:
    """What the GPUs here are called; none where processors compute.

    Raises:
        ExecutorError: the library for them is not installed.
    """
    if not on_gpu(options):
        return []
    from sarathi.backends.torch.torch_devices import gpu_names

    return gpu_names()


def create_executor(
    model: Model,
    options: ExecutorOptions,
    layout: ParallelLayout = _ONE[0],
    place: RankId = _ONE[1],
    *,
    threads: int | None = None,
    group: ProcessGroup | None = None,
    neighbour: int = 0,
    neighbours: int = 1,
    tell: ProgressCallback = lambda share: None,
) -> Executor:
    """Load what belongs to one place.

    Args:
        threads: to compute with; None for one a core.
        group: the ranks of the stage; None where there is one.
        neighbour: the number of this process among those of the engine on this machine.
        neighbours: how many they are.
        tell: called now and then, from any thread, with the share of tensors that are read.

    Raises:
        ExecutorError: the machine cannot run it or has no room for it, or the library for it is
            not installed.
        ModelError: the checkpoint does not hold what its configuration says.
    """
    stage = layout.stages(model.config)[place.stage]
    tell = rate_limited(tell)
    if not on_gpu(options):  # whose library says it by itself
        precision, _ = choose_precisions(options)
        weights = weight_bytes(model.config, stage, layout.shard(place), precision)
        check_room(neighbours * weights, available_memory())
    if options.executor == "openvino":
        from sarathi.backends.openvino.openvino_executor import OpenVinoExecutor

        wanted = len(expected_shapes(model.config, stage))
        return OpenVinoExecutor(
            model.config,
            CountedWeights(model.weights, wanted, tell),
            stage=stage,
            max_position=options.max_position,
            precision=options.precision,
            kv_precision=options.kv_precision,
            num_threads=threads,
            deterministic=options.deterministic,
            bind_threads=layout == ParallelLayout(),
        )
    with needing_torch():
        from sarathi.backends.torch.torch_executor import TorchExecutor

    return TorchExecutor(
        model.config,
        model.weights,
        stage=stage,
        shard=layout.shard(place),
        group=group,
        max_position=options.max_position,
        precision=options.precision,
        device=options.device,
        device_index=_device_index(options, neighbour),
        num_threads=threads,
        deterministic=options.deterministic,
        max_batch_size=options.max_batch_size,
        progress=tell,
    )


def create_runner(executor: Executor) -> Runner:
    """Make what runs steps on an executor that has the whole model."""
    sampler = executor.make_sampler()
    if isinstance(sampler, Sampler):
        return InlineRunner(executor, sampler)
    # Imported here: only what samples on its device can look ahead.
    from sarathi.backends.torch.overlapped_runner import OverlappedRunner
    from sarathi.backends.torch.torch_executor import TorchExecutor
    from sarathi.backends.torch.torch_sampler import TorchSampler

    assert isinstance(executor, TorchExecutor)
    assert isinstance(sampler, TorchSampler)
    return OverlappedRunner(executor, sampler)


def free_memory(executor: Executor, options: ExecutorOptions, neighbour: int = 0) -> DeviceMemory:
    """What there is for the KV cache. All ranks of a stage ask together.

    Args:
        neighbour: as for `create_executor`.
    """
    host = platform.node()
    if options.executor == "torch":
        from sarathi.backends.torch.torch_executor import TorchExecutor

        assert isinstance(executor, TorchExecutor)
        if on_gpu(options):
            free = executor.free_memory(options.max_tokens, options.max_batch_size)
            return DeviceMemory(
                f"GPU {_device_index(options, neighbour)} of {host}", free, shared=False
            )
    return DeviceMemory(host, available_memory(), shared=True)


def open_store(host: str | None) -> Rendezvous:
    """Where the ranks of a stage find each other, for the first of them.

    Args:
        host: the address under which others reach this process; None: all are on this machine.

    Raises:
        ExecutorError: torch is not installed, or cannot listen there.
    """
    with needing_torch():
        from sarathi.backends.torch.process_group import Rendezvous

    return Rendezvous.open(host or "127.0.0.1", _PATIENCE)


def init_process_group(
    store: Rendezvous | str,
    layout: ParallelLayout,
    place: RankId,
    options: ExecutorOptions,
    neighbour: int,
) -> ProcessGroup:
    """The ranks of a stage, once all have come.

    Args:
        store: what `open_store` gave, or its address.
        neighbour: as for `create_executor`.

    Raises:
        ExecutorError: one does not come.
    """
    from sarathi.backends.torch.process_group import DistributedGroup, Rendezvous
    from sarathi.backends.torch.torch_devices import find_device

    if isinstance(store, str):
        store = Rendezvous.join(store, _JOINING)
    device = find_device(options.device, _device_index(options, neighbour))
    return DistributedGroup(store, place.rank, layout.tp, device, _PATIENCE)


@contextmanager
def needing_torch() -> Iterator[None]:
    """Around an import.

    Raises:
        ExecutorError: torch is not installed.
    """
    try:
        yield
    except ImportError as error:
        if error.name != "torch":
            raise
        raise ExecutorError(
            "--executor torch needs PyTorch: pip install 'sarathi-serve[cuda]'"
        ) from error


def _device_index(options: ExecutorOptions, neighbour: int) -> int:
    """Processes on a machine take its GPUs in turn; a cluster shows each only its own."""
    from sarathi.backends.torch.torch_devices import num_gpus

    return (options.first_gpu + neighbour) % max(1, num_gpus())
