"""What there is to compute on."""

from __future__ import annotations

import torch

from sarathi.executors.choices import Device
from sarathi.executors.errors import ExecutorError
from sarathi.executors.precision import Precision
from sarathi.executors.torch import attention
from sarathi.executors.torch.arrays import DTYPES
from sarathi.executors.torch.memory import UTILISATION
from sarathi.models.config import ModelConfig


def default_device() -> Device:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_precision(device: Device) -> Precision:
    """bf16 on GPUs, f16 on those that do not compute in it; f32 on CPUs."""
    if device == "cpu":
        return "f32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "f16"


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
        ExecutorError: it is not there.
    """
    if (name or default_device()) == "cpu":
        return torch.device("cpu")
    count = num_gpus()
    if index >= count:
        raise ExecutorError(
            f"device cuda: GPU number {index} is asked for and torch finds {count} here; "
            "--device cpu needs none"
        )
    return torch.device("cuda", index)


def room_on_gpus() -> tuple[int, ...]:
    """Bytes of each GPU that weights and KV cache may have between them."""
    found = (torch.cuda.mem_get_info(index) for index in range(num_gpus()))
    return tuple(max(0, int(total * UTILISATION) - (total - free)) for free, total in found)


def block_size(config: ModelConfig, precision: Precision, *, gpu: bool) -> int:
    """Tokens of a KV block that an executor here would have.

    Args:
        config: with the heads of one rank.
    """
    device = find_device("cuda" if gpu else "cpu")
    return attention.block_size(config, DTYPES[precision], device)
