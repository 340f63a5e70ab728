"""What the torch backend can do, see `executor.Backend`."""

from __future__ import annotations

import platform

from sarathi.backends.executor import (
    Backend,
    DeviceMemory,
    Executor,
    ExecutorPart,
    ProgressCallback,
)
from sarathi.backends.options import ExecutorOptions, KvPrecision, Precision
from sarathi.backends.runner import InlineRunner, Runner
from sarathi.backends.torch import attention_backend
from sarathi.backends.torch.process_group import DistributedGroup, Rendezvous
from sarathi.backends.torch.torch_devices import (
    default_device,
    default_precision,
    find_device,
    gpu_memory,
    gpu_names,
    num_gpus,
)
from sarathi.backends.torch.torch_executor import TorchExecutor
from sarathi.models.model import Model
from sarathi.models.sharding import Shard
from sarathi.sampling.sampler import Sampler
from sarathi.system.machine import available_memory

# Seconds that ranks wait for each other. In later stages that includes the time of those before,
# where a long prompt in one chunk takes its time. The engine notices sooner when a rank dies.
_RANK_TIMEOUT = 300.0
_CONNECT_TIMEOUT = 60.0  # seconds to reach rank 0, which runs already


class TorchBackend:
    """Executors on CPUs and GPUs, one for each rank of a stage."""

    def __init__(self) -> None:
        self.process_groups = TorchProcessGroups()

    def choose_precisions(self, options: ExecutorOptions) -> tuple[Precision, KvPrecision]:
        precision = options.precision or default_precision(options.device or default_device())
        return precision, precision

    def uses_gpu(self, options: ExecutorOptions) -> bool:
        return (options.device or default_device()) == "cuda"

    def gpu_names(self, options: ExecutorOptions) -> list[str]:
        return gpu_names() if self.uses_gpu(options) else []

    def gpu_memory(self, options: ExecutorOptions) -> tuple[int, ...]:
        return gpu_memory() if self.uses_gpu(options) else ()

    def block_size(self, options: ExecutorOptions) -> int:
        return attention_backend.block_size(find_device(options.device))

    def create_executor(
        self,
        model: Model,
        options: ExecutorOptions,
        part: ExecutorPart,
        on_progress: ProgressCallback,
    ) -> TorchExecutor:
        return TorchExecutor(
            model.config,
            model.weights,
            stage=part.stage,
            shard=part.shard,
            group=part.group,
            max_position=options.max_position,
            precision=options.precision,
            device=options.device,
            device_index=_device_index(options, part.local_rank),
            num_threads=part.threads,
            deterministic=options.deterministic,
            max_batch_size=options.max_batch_size,
            on_progress=on_progress,
        )

    def create_runner(self, executor: Executor) -> Runner:
        assert isinstance(executor, TorchExecutor)
        sampler = executor.make_sampler()
        if isinstance(sampler, Sampler):
            return InlineRunner(executor, sampler)
        # Imported here: CPUs do without Triton.
        from sarathi.backends.torch.overlapped_runner import OverlappedRunner
        from sarathi.backends.torch.torch_sampler import TorchSampler

        assert isinstance(sampler, TorchSampler)
        return OverlappedRunner(executor, sampler)

    def free_memory(
        self, executor: Executor, options: ExecutorOptions, local_rank: int
    ) -> DeviceMemory:
        host = platform.node()
        if not self.uses_gpu(options):
            return DeviceMemory(host, available_memory(), shared=True)
        assert isinstance(executor, TorchExecutor)
        free = executor.free_memory(options.max_tokens, options.max_batch_size)
        name = f"GPU {_device_index(options, local_rank)} of {host}"
        return DeviceMemory(name, free, shared=False)


class TorchProcessGroups:
    """See `executor.ProcessGroups`: over `torch.distributed`."""

    def open_rendezvous(self, host: str | None) -> Rendezvous:
        return Rendezvous.open(host or "127.0.0.1", _RANK_TIMEOUT)

    def init_process_group(
        self,
        rendezvous: Rendezvous | str,
        shard: Shard,
        options: ExecutorOptions,
        local_rank: int,
    ) -> DistributedGroup:
        if isinstance(rendezvous, str):
            rendezvous = Rendezvous.join(rendezvous, _CONNECT_TIMEOUT)
        device = find_device(options.device, _device_index(options, local_rank))
        return DistributedGroup(rendezvous, shard.rank, shard.count, device, _RANK_TIMEOUT)


def _device_index(options: ExecutorOptions, local_rank: int) -> int:
    """Return the GPU of a process: round-robin, since a cluster shows each only its own."""
    return (options.first_gpu + local_rank) % max(1, num_gpus())


BACKEND: Backend = TorchBackend()  # has no state
