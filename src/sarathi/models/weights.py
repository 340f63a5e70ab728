"""The weights of a checkpoint by name, whichever file format holds them."""

from __future__ import annotations

import mmap
from collections.abc import Set
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
ALL = slice(None)


class Tensors(Protocol):
    """Tensors by name."""

    def __getitem__(self, name: str) -> Array: ...


class Weights(Tensors, Protocol):
    """Tensors under the names that Hugging Face checkpoints use (`model.layers.0...`).

    An array is float32, float16 or `ml_dtypes.bfloat16`. Unquantised tensors are views of the
    mapped file. Quantised ones are dequantised anew to float32 at every access, and those that do
    not lie in one piece in the file are gathered anew, so a caller keeps what it needs and nothing
    else stays in memory.
    """

    def __getitem__(self, name: str) -> Array:
        """The tensor, or `ModelError` naming the tensor that the checkpoint lacks."""

    def part(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Array:
        """Consecutive rows of a tensor and, of a matrix, consecutive columns of them.

        They are read at once and nothing else of the file is, so ask when they are needed. A view
        where they lie in one piece in the file. `ModelError` as for the whole tensor.
        """

    def __contains__(self, name: object) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, without reading it. Raises `ModelError` where it is missing."""

    def stored_dtype(self, name: str) -> np.dtype[np.generic] | None:
        """The type in which the file holds it, None where every access makes it anew."""

    @property
    def mappings(self) -> tuple[mmap.mmap, ...]:
        """The mapped files, for advice to the kernel about their pages."""


class StoredWeights(Weights, Protocol):
    """Tensors under the names of the checkpoint, all of which are known."""

    @property
    def names(self) -> Set[str]: ...
