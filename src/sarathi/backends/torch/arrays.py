"""Conversion between numpy arrays and tensors, and copies between host and device."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from sarathi.backends.executor_options import Precision
from sarathi.models.weights import Array

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
