"""The backends by name, and the options that every executor takes.

Nothing here imports a backend's library until that backend is loaded. To add a backend, write a
module with a class that implements `executor.Backend`, and add it to `BACKENDS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

import msgspec

from sarathi.errors import ExecutorError
from sarathi.models.locate import LoadFormat

if TYPE_CHECKING:
    from sarathi.backends.executor import Backend

ExecutorName = Literal["openvino", "torch"]
Device = Literal["cpu", "cuda"]
Precision = Literal["f32", "bf16", "f16"]
KvPrecision = Literal["f32", "bf16", "f16", "u8"]
Kernels = Literal["auto", "native", "plugin"]  # of the OpenVINO backend
Quantization = Literal["auto", "exact", "int8", "int4", "none"]  # see `quantization.served_forms`


@dataclass(frozen=True)
class BackendEntry:
    """What is known of a backend before its library is imported."""

    module: str
    class_name: str  # of its `executor.Backend`
    library: str  # that the module imports; the distribution has the same name
    requires: str  # what to install, and how
    has_devices: bool  # whether the option `device` chooses where it computes
    has_tensor_parallelism: bool  # whether several ranks can share the layers of a stage
    has_kv_precision: bool  # whether the KV cache can have another precision than the weights
    has_quantization: bool  # whether matrices can be served in integers
    has_kernels: bool  # whether the option `kernels` chooses what computes


BACKENDS: Mapping[ExecutorName, BackendEntry] = {
    "openvino": BackendEntry(
        module="sarathi.backends.openvino.openvino_executor",
        class_name="OpenVinoBackend",
        library="openvino",
        requires="OpenVINO: pip install openvino",
        has_devices=False,
        has_tensor_parallelism=False,
        has_kv_precision=True,
        has_quantization=True,
        has_kernels=True,
    ),
    "torch": BackendEntry(
        module="sarathi.backends.torch.torch_executor",
        class_name="TorchBackend",
        library="torch",
        requires="PyTorch: pip install 'sarathi-serve[cuda]'",
        has_devices=True,
        has_tensor_parallelism=True,
        has_kv_precision=False,
        has_quantization=False,
        has_kernels=False,
    ),
}


def load_backend(options: ExecutorOptions) -> Backend:
    """Import the backend that the options name; `ExecutorError` if its library is missing."""
    entry = BACKENDS[options.executor]
    try:
        backend: Backend = getattr(import_module(entry.module), entry.class_name)(options)
        return backend
    except ImportError as error:
        if error.name != entry.library:
            raise
        raise ExecutorError(f"--executor {options.executor} needs {entry.requires}") from error


# Share of a GPU's memory: the rest is for graphs, libraries and fragments.
GPU_MEMORY_UTILIZATION = 0.9


class ExecutorOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of an executor, the same for all stages and ranks."""

    load_format: LoadFormat = "auto"
    executor: ExecutorName = "openvino"
    device: Device | None = None  # of torch; None: cuda if there is one
    precision: Precision | None = None  # None: the fastest that the processor computes in
    kv_precision: KvPrecision | None = None  # None: the backend chooses
    quantization: Quantization = "none"
    kernels: Kernels = "auto"
    threads: int | None = None  # None: all cores of the machine between the processes on it
    deterministic: bool = False
    own_cores: bool = False  # whether no other engine uses the cores of this machine
    first_gpu: int = 0  # of a machine's, for the first of these processes on it
    max_position: int  # tokens of the longest sequence
    max_tokens: int  # of a step
    max_batch_size: int = 128  # sequences of a step
    gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION
