"""The torch backend, as `registry.load_backend` makes it."""

from __future__ import annotations

import platform

import torch

from sarathi.backends.executor import (
    Backend,
    DeviceMemory,
    Executor,
    ExecutorPart,
    ProcessGroups,
    ProgressCallback,
)
from sarathi.backends.registry import ExecutorOptions, KvPrecision, Precision
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


class TorchBackend(Backend):
    """Executors on CPUs and GPUs, one for each rank of a stage."""

    def __init__(self, options: ExecutorOptions) -> None:
        self._options = options
        self._device = options.device or default_device()

    @property
    def uses_gpu(self) -> bool:
        return self._device == "cuda"

    @property
    def gpu_names(self) -> tuple[str, ...]:
        return gpu_names() if self.uses_gpu else ()

    @property
    def gpu_memory(self) -> tuple[int, ...]:
        return gpu_memory(self._options.gpu_memory_utilization) if self.uses_gpu else ()

    @property
    def block_size(self) -> int:
        return attention_backend.block_size(find_device(self._device))

    @property
    def process_groups(self) -> ProcessGroups:
        return TorchProcessGroups(self)

    def choose_precisions(self) -> tuple[Precision, KvPrecision]:
        precision = self._options.precision or default_precision(self._device)
        return precision, precision

    def device_index(self, local_rank: int) -> int:
        """Return the GPU of a process: round-robin, since a cluster shows each only its own."""
        return (self._options.first_gpu + local_rank) % max(1, num_gpus())

    def find_device(self, local_rank: int) -> torch.device:
        """Return the device of a process after checking that it can be used."""
        return find_device(self._device, self.device_index(local_rank))

    def create_executor(
        self, model: Model, part: ExecutorPart, on_progress: ProgressCallback
    ) -> TorchExecutor:
        options = self._options
        return TorchExecutor(
            model.config,
            model.weights,
            stage=part.stage,
            shard=part.shard,
            group=part.group,
            max_position=options.max_position,
            precision=options.precision,
            device=self._device,
            device_index=self.device_index(part.local_rank),
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

    def free_memory(self, executor: Executor, local_rank: int) -> DeviceMemory:
        host = platform.node()
        if not self.uses_gpu:
            return DeviceMemory(host, available_memory(), shared=True)
        assert isinstance(executor, TorchExecutor)
        options = self._options
        free = executor.free_memory(
            options.max_tokens, options.max_batch_size, options.gpu_memory_utilization
        )
        return DeviceMemory(f"GPU {self.device_index(local_rank)} of {host}", free, shared=False)


class TorchProcessGroups:
    """Groups over `torch.distributed`."""

    def __init__(self, backend: TorchBackend) -> None:
        self._backend = backend

    def open_rendezvous(self, host: str | None) -> Rendezvous:
        return Rendezvous.open(host or "127.0.0.1", _RANK_TIMEOUT)

    def init_process_group(
        self, rendezvous: Rendezvous | str, shard: Shard, local_rank: int
    ) -> DistributedGroup:
        if isinstance(rendezvous, str):
            rendezvous = Rendezvous.join(rendezvous, _CONNECT_TIMEOUT)
        device = self._backend.find_device(local_rank)
        return DistributedGroup(rendezvous, shard.rank, shard.count, device, _RANK_TIMEOUT)
