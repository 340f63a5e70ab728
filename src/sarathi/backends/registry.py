"""The backends by name. Nothing here imports a backend's library until that backend is loaded.

To add a backend, write a module with a class that implements `executor.Backend`, and add it here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from sarathi.errors import ExecutorError

if TYPE_CHECKING:
    from sarathi.backends.executor import Backend
    from sarathi.backends.executor_options import ExecutorOptions

ExecutorName = Literal["openvino", "torch"]


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


BACKENDS: Mapping[ExecutorName, BackendEntry] = {
    "openvino": BackendEntry(
        module="sarathi.backends.openvino.openvino_backend",
        class_name="OpenVinoBackend",
        library="openvino",
        requires="OpenVINO: pip install openvino",
        has_devices=False,
        has_tensor_parallelism=False,
        has_kv_precision=True,
    ),
    "torch": BackendEntry(
        module="sarathi.backends.torch.torch_backend",
        class_name="TorchBackend",
        library="torch",
        requires="PyTorch: pip install 'sarathi-serve[cuda]'",
        has_devices=True,
        has_tensor_parallelism=True,
        has_kv_precision=False,
    ),
}


def load_backend(options: ExecutorOptions) -> Backend:
    """Import the backend that the options name, and its library.

    Raises:
        ExecutorError: the library is not installed.
    """
    entry = BACKENDS[options.executor]
    try:
        backend: Backend = getattr(import_module(entry.module), entry.class_name)(options)
    except ImportError as error:
        if error.name != entry.library:
            raise
        raise ExecutorError(f"--executor {options.executor} needs {entry.requires}") from error
    return backend
