"""What there is to compute on."""

from __future__ import annotations

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch

from sarathi.backends.options import Device, Precision
from sarathi.backends.torch import attention_backend as attention
from sarathi.backends.torch.device_memory import UTILISATION
from sarathi.errors import ExecutorError

# Of the oldest GPUs that the kernels are compiled for (A100): bfloat16, asynchronous copies.
_MIN_CAPABILITY = (8, 0)


def default_device() -> Device:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_precision(device: Device) -> Precision:
    """bf16 on GPUs, f32 on CPUs."""
    return "f32" if device == "cpu" else "bf16"


def num_gpus() -> int:
    """That torch finds in this process."""
    return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0


def gpu_names() -> list[str]:
    """Of all that torch finds in this process."""
    return [str(torch.cuda.get_device_name(index)) for index in range(num_gpus())]


def find_device(name: Device | None = None, index: int = 0) -> torch.device:
    """
    Args:
        name: None for `default_device`.
        index: which GPU.

    Raises:
        ExecutorError: it is not there, is too old, or Triton is not installed or lacks a compiler.
    """
    if (name or default_device()) == "cpu":
        return torch.device("cpu")
    count = num_gpus()
    if index >= count:
        raise ExecutorError(
            f"device cuda: GPU number {index} is asked for and torch finds {count} here; "
            "--device cpu needs none"
        )
    device = torch.device("cuda", index)
    _check_gpu(device)
    return device


def _check_gpu(device: torch.device) -> None:
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


def _check_compiler() -> None:
    """Triton builds a small module of C for every kernel."""
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    elsewhere = "CPATH" in os.environ or "C_INCLUDE_PATH" in os.environ
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        missing = "a C compiler (gcc or clang)"
    elif not (elsewhere or headers.is_file()):
        missing = f"Python's header files ({headers}; the package python3-dev of Debian and Ubuntu)"
    else:
        return
    raise ExecutorError(f"device cuda: Triton needs {missing}, which is not there")


def room_on_gpus() -> tuple[int, ...]:
    """Bytes of each GPU that weights and KV cache may have between them."""
    found = (torch.cuda.mem_get_info(index) for index in range(num_gpus()))
    return tuple(max(0, int(total * UTILISATION) - (total - free)) for free, total in found)


def block_size(*, gpu: bool) -> int:
    """Tokens of a KV block that an executor here would have."""
    return attention.block_size(find_device("cuda" if gpu else "cpu"))
