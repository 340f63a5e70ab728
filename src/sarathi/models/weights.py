"""The weights of a checkpoint by name, independent of its format."""

from __future__ import annotations

import mmap
from collections.abc import Set
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sarathi.models.quantized import IntegerForm, PackedMatrix, QuantizedRows

Array = npt.NDArray[np.generic]
ALL = slice(None)
# Names of stored types. FP8 is expanded: as numbers with an exponent it has no integer form.
UNQUANTISED = ("F32", "F16", "BF16", "F8_E4M3")


def rounded(value: float, dtype: np.dtype[np.generic]) -> float:
    """Round a number to the precision of a tensor."""
    return float(np.asarray(value).astype(dtype))


class Tensors(Protocol):
    """Tensors by name."""

    def __getitem__(self, name: str) -> Array | PackedMatrix: ...


class Weights(Tensors, Protocol):
    """Tensors under the names that Hugging Face checkpoints use (`model.layers.0...`).

    An array is float32, float16 or `ml_dtypes.bfloat16`. Unquantised tensors are views of the
    mapped file. At every access, quantised ones are dequantised to float32 and those that are not
    contiguous in the file are gathered, so a caller keeps what it needs and nothing else stays in
    memory.
    """

    def __getitem__(self, name: str) -> Array:
        """Return the tensor; `ModelError` with its name if the checkpoint lacks it."""

    def part(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Array:
        """Return consecutive rows of a tensor and, of a matrix, consecutive columns of them.

        They are read immediately, and nothing else of the file is. A view where they are
        contiguous in the file. `ModelError` as for the whole tensor.
        """

    def __contains__(self, name: object) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return its shape, without reading it. Raises `ModelError` if it is missing."""

    def stored_dtype(self, name: str) -> np.dtype[np.generic] | None:
        """Return its type in the file; None if every access computes it."""

    def stored_type(self, name: str) -> str:
        """Return the name of its type in the file, such as BF16 or Q4_K; see `UNQUANTISED`."""

    def form(self, name: str) -> IntegerForm | None:
        """Return the form in which a matrix is stored; None if it has none of ours."""

    def quantized(self, name: str, rows: slice = ALL) -> QuantizedRows:
        """Read consecutive rows of a matrix in its stored form, exactly."""

    @property
    def mappings(self) -> tuple[mmap.mmap, ...]:
        """The mapped files, for advice to the kernel about their pages."""


class StoredWeights(Weights, Protocol):
    """Tensors under the names of the checkpoint, with a list of these."""

    @property
    def names(self) -> Set[str]: ...
