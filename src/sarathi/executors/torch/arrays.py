"""Between numpy and torch, whose bfloat16 does not know each other."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from sarathi.executors.precision import Precision
from sarathi.models.weights import Array

DTYPES: Mapping[Precision, torch.dtype] = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
}


def as_array(tensor: torch.Tensor) -> Array:
    """The memory of a tensor on the CPU, as numpy sees it."""
    if tensor.dtype is torch.bfloat16:
        raw: npt.NDArray[np.uint16] = tensor.view(torch.uint16).numpy()
        return raw.view(ml_dtypes.bfloat16)
    array: Array = tensor.numpy()
    return array


def as_tensor(array: Array, dtype: torch.dtype) -> torch.Tensor:
    """A copy of an array, converted; the array may be read-only, such as a mapped file."""
    tensor = torch.empty(array.shape, dtype=dtype)
    as_array(tensor)[...] = array
    return tensor
