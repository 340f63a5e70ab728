"""The weights of one rank on its device: read from a checkpoint, or random."""

from __future__ import annotations

import math
import mmap
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

from sarathi.backends.executor import ProgressCallback
from sarathi.backends.torch.torch_devices import as_array, as_tensor
from sarathi.models.decoder import GATED_PROJECTIONS, QKV_PROJECTIONS
from sarathi.models.dummy_weights import BLOCK_SIZE, RandomTensor, random_tensor
from sarathi.models.weights import Array, Weights
from sarathi.system.machine import usable_cores

_PIECE = 1 << 22  # elements of random weights that are made in float32 at a time
# Modules whose weights are stored as one matrix, rows one after the other, and their parts.
QKV = "qkv_proj"
GATE_UP = "gate_up_proj"
_JOINED: Mapping[str, tuple[str, ...]] = {QKV: QKV_PROJECTIONS, GATE_UP: GATED_PROJECTIONS}


class Parameters:
    """Tensors by name, in the served precision.

    Projections of the same input are joined, so that one matrix product computes them: every layer
    has `qkv_proj` and `gate_up_proj` in addition to their parts. A joined tensor is allocated once
    and each part is a view of its rows.
    """

    def __init__(
        self,
        weights: Weights,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
        device: torch.device,
        on_progress: ProgressCallback = lambda share: None,
    ) -> None:
        """Convert and copy the tensors that `shapes` names, on all cores; `on_progress` gets the
        share of the bytes that have been copied.

        In addition to the tensors this needs the memory of one part for every core, and none on
        CPUs where the checkpoint is not quantised.

        Raises:
            ModelError: the checkpoint lacks one.
        """
        self._vectors: dict[str, torch.Tensor] = {}
        self._tensors, self.num_bytes = _allocate(shapes, dtype, device)
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        total, done = sum(sizes.values()), 0

        def read(name: str) -> None:
            source = random_tensor(weights, name)
            if source is not None:
                fill_dummy(self._tensors[name], source)
                return
            _copy(weights[name], self._tensors[name])
            # The pages of the file that have been copied are not needed again.
            for mapping in weights.mappings:
                mapping.madvise(mmap.MADV_DONTNEED)

        with ThreadPoolExecutor(usable_cores()) as pool:
            for name, _ in zip(shapes, pool.map(read, shapes), strict=True):
                done += sizes[name]
                on_progress(done / total)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def vector(self, name: str) -> torch.Tensor:
        """Return a norm's scale or bias in float32."""
        if name not in self._vectors:
            self._vectors[name] = self._tensors[name].float()
        return self._vectors[name]


class ServedWeights:
    """The parameters as numpy arrays, for the reference."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters

    def __getitem__(self, name: str) -> Array:
        return as_array(self._parameters[name].cpu())


def joined_tensors(names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Map the name of each joined tensor to the names of its parts, in the order of their rows."""
    found = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        parent, _, projection = module.rpartition(".")
        for joined, projections in _JOINED.items():
            parts = tuple(f"{parent}.{part}.{kind}" for part in projections)
            if projection == projections[0] and all(part in names for part in parts):
                found[f"{parent}.{joined}.{kind}"] = parts
    return found


def _allocate(
    shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device
) -> tuple[dict[str, torch.Tensor], int]:
    """Allocate all tensors; return them with the joined ones, and their bytes in all."""
    tensors: dict[str, torch.Tensor] = {}
    for joined, parts in joined_tensors(shapes).items():
        rows = [shapes[part][0] for part in parts]
        shape = (sum(rows), *shapes[parts[0]][1:])
        tensors[joined] = torch.empty(shape, dtype=dtype, device=device)
        tensors.update(zip(parts, tensors[joined].split(rows), strict=True))
    for name in shapes.keys() - tensors.keys():
        tensors[name] = torch.empty(shapes[name], dtype=dtype, device=device)
    return tensors, sum(tensors[name].nbytes for name in shapes)


def _copy(array: Array, target: torch.Tensor) -> None:
    """Convert an array into a tensor's own memory."""
    if target.device.type == "cpu":
        as_array(target)[...] = array
    else:
        target.copy_(as_tensor(array, target.dtype))


def fill_dummy(tensor: torch.Tensor, source: RandomTensor) -> None:
    """Fill `tensor`, [rows, columns] or [elements], contiguous, with the values of `source`.

    The values are those of `source.values()`, rounded to the tensor's type, and computed on the
    tensor's device: only the block that they are taken from, 4 MB, is copied there. Rows beyond
    those of `source`, which pad a vocabulary that ranks share, become zeros.
    """
    *rows, width = source.shape
    count = rows[0] if rows else 1
    filled = tensor[:count] if rows else tensor[:width].unsqueeze(0)
    tensor[len(filled) if rows else width :].zero_()
    if not filled.numel():
        return
    if not source.std:
        filled.fill_(source.mean)
        return
    block = torch.from_numpy(source.block).to(tensor.device)
    # Row i of this view is the part of the block that begins at element i.
    windows = block.as_strided((BLOCK_SIZE, width), (1, 1))
    starts = torch.from_numpy(source.row_starts()).to(tensor.device)
    each = max(1, _PIECE // width)
    for begin in range(0, count, each):
        piece = windows.index_select(0, starts[begin : begin + each])
        filled[begin : begin + each] = piece.mul_(source.std).add_(source.mean)
