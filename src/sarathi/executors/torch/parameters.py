"""The weights of one rank on its device."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

from sarathi.executors.machine import usable_cores
from sarathi.executors.torch.arrays import as_array, as_tensor
from sarathi.executors.torch.dummy import fill_dummy
from sarathi.models.dummy_weights import random_tensor
from sarathi.models.weights import Array, Weights


class Parameters:
    """Tensors by name, in the served precision."""

    def __init__(
        self,
        weights: Weights,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
        device: torch.device,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Convert and copy the tensors that `shapes` names, on all cores.

        Args:
            progress: called with the share of the bytes that are there.

        Raises:
            ModelError: the checkpoint lacks one.
        """
        self._tensors: dict[str, torch.Tensor] = {}
        self._vectors: dict[str, torch.Tensor] = {}
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        total, done = sum(sizes.values()), 0

        def read(name: str) -> torch.Tensor:
            source = random_tensor(weights, name)
            if source is not None:
                made = torch.empty(shapes[name], dtype=dtype, device=device)
                fill_dummy(made, source)
                return made
            tensor = as_tensor(weights[name], dtype).to(device)
            # The pages of the file that have been copied are not needed again.
            for mapping in weights.mappings:
                mapping.madvise(mmap.MADV_DONTNEED)
            return tensor

        with ThreadPoolExecutor(usable_cores()) as pool:
            for name, tensor in zip(shapes, pool.map(read, shapes), strict=True):
                self._tensors[name] = tensor
                done += sizes[name]
                if progress is not None:
                    progress(done / total)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def vector(self, name: str) -> torch.Tensor:
        """In float32: a norm's scale or bias."""
        if name not in self._vectors:
            self._vectors[name] = self._tensors[name].float()
        return self._vectors[name]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors.values())


class Served:
    """The same as arrays, for what computes in numpy."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters

    def __getitem__(self, name: str) -> Array:
        return as_array(self._parameters[name].cpu())
