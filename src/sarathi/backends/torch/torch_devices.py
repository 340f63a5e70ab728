"""The devices that torch computes on, their memory, and copies between them and numpy arrays."""

from __future__ import annotations

import gc
import os
import shutil
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from sarathi.backends.registry import Device, Precision
from sarathi.errors import ExecutorError
from sarathi.models.weights import Array

# Of the oldest GPUs that the kernels are compiled for (A100): bfloat16, asynchronous copies.
_MIN_CAPABILITY = (8, 0)


def default_device() -> Device:
    """Return "cuda" if there is a GPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_precision(device: Device) -> Precision:
    """Return bf16 on GPUs, f32 on CPUs."""
    return "f32" if device == "cpu" else "bf16"


def num_gpus() -> int:
    """Count the GPUs that torch finds in this process."""
    return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0


def gpu_names() -> tuple[str, ...]:
    """Return the names of all GPUs that torch finds in this process."""
    return tuple(str(torch.cuda.get_device_name(index)) for index in range(num_gpus()))


def find_device(name: Device | None = None, index: int = 0) -> torch.device:
    """Return a device, `default_device` for None, or one of the GPUs, if it can be used.

    Raises:
        ExecutorError: there is no such GPU, it is too old, or Triton or its compiler is missing.
    """
    if (name or default_device()) == "cpu":
        return torch.device("cpu")
    count = num_gpus()
    if index >= count:
        raise ExecutorError(
            f"device cuda: GPU number {index} is requested and torch finds {count} here; "
            "--device cpu needs none"
        )
    device = torch.device("cuda", index)
    capability = torch.cuda.get_device_capability(device)
    if capability < _MIN_CAPABILITY:
        raise ExecutorError(
            f"device cuda: {torch.cuda.get_device_name(device)} has compute capability "
            f"{capability[0]}.{capability[1]}; {_MIN_CAPABILITY[0]}.{_MIN_CAPABILITY[1]} or higher "
            "is needed (A100 and later)"
        )
    if find_spec("triton") is None:
        raise ExecutorError(
            "device cuda needs Triton, which is not installed: `pip install 'sarathi-serve[cuda]'` "
            "or `pip install triton`"
        )
    _check_compiler()
    return device


def _check_compiler() -> None:
    """Check for what Triton needs to build a small C module for every kernel."""
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    elsewhere = "CPATH" in os.environ or "C_INCLUDE_PATH" in os.environ
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        missing = "a C compiler (gcc or clang)"
    elif not (elsewhere or headers.is_file()):
        missing = f"Python's header files ({headers}; the package python3-dev of Debian and Ubuntu)"
    else:
        return
    raise ExecutorError(f"device cuda: Triton needs {missing}, which is not installed")


def gpu_memory(utilization: float) -> tuple[int, ...]:
    """Return the bytes of each GPU, a share of its memory, that weights and KV cache may use."""
    found = (torch.cuda.mem_get_info(index) for index in range(num_gpus()))
    return tuple(max(0, int(total * utilization) - (total - free)) for free, total in found)


def free_memory(device: torch.device, utilization: float, run_largest: Callable[[], object]) -> int:
    """Return the bytes of a GPU that are left for a KV cache while the largest step runs.

    Args:
        utilization: share of the GPU's memory that may be used, weights included.
        run_largest: runs that step, whose memory is measured.
    """
    release_memory(device)
    torch.cuda.reset_peak_memory_stats(device)
    run_largest()
    torch.cuda.synchronize(device)
    peak: int = torch.cuda.max_memory_reserved(device)
    release_memory(device)
    free, total = torch.cuda.mem_get_info(device)
    # What the driver and other processes use.
    others: int = total - free - torch.cuda.memory_reserved(device)
    return max(0, int(total * utilization) - others - peak)


def release_memory(device: torch.device) -> None:
    """Free memory that nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


DTYPES: Mapping[Precision, torch.dtype] = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
}


def as_array(tensor: torch.Tensor) -> Array:
    """View a tensor on the CPU as an array."""
    if tensor.dtype is torch.bfloat16:
        raw: npt.NDArray[np.uint16] = tensor.view(torch.uint16).numpy()
        return raw.view(ml_dtypes.bfloat16)
    array: Array = tensor.numpy()
    return array


def as_tensor(array: Array, dtype: torch.dtype) -> torch.Tensor:
    """Copy and convert an array, which may be read-only, such as a mapped file."""
    tensor = torch.empty(array.shape, dtype=dtype)
    as_array(tensor)[...] = array
    return tensor


def to_device(array: Array, device: torch.device) -> torch.Tensor:
    """Copy an array to a device without waiting for the copy.

    Torch keeps pinned memory that has been released until the copies out of it are done, and then
    reuses it, so it is a ring of buffers that grows with the number of copies in flight.
    """
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to pinned memory; the copy is complete once the current stream reaches it."""
    if tensor.device.type == "cpu":
        return tensor
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


@contextmanager
def computing(device: torch.device) -> Iterator[None]:
    """Let the calling thread compute on a device: it need not be the one that loaded the model."""
    with torch.inference_mode():
        if device.index is not None and device.type == "cuda":
            torch.cuda.set_device(device)
        yield


class HostEvent:
    """As `torch.cuda.Event`, on a CPU, where all launched work has been computed."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Any) -> float:
        return float(1e3 * (other._at - self._at))


DeviceEvent: TypeAlias = "torch.cuda.Event | HostEvent"


def record_event(device: torch.device, *, timing: bool = False) -> DeviceEvent:
    """Record an event on the current stream of a device; `timing` is for `elapsed_time`."""
    if device.type == "cpu":
        return HostEvent()
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=timing)
    event.record()
    return event
