"""Random weights of a configuration's shape, for measurements without a checkpoint.

All values come from one block of normally distributed numbers: a tensor reads it row by row from an
offset that depends on its name, wrapping around at the end. An element thus depends on the tensor's
name and its position in the whole tensor alone: every process, rank and device gets the same
values, whichever part of a tensor it reads, and computing them costs no more than copying memory.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from sarathi.errors import ModelError
from sarathi.models.decoder import whole_model
from sarathi.models.model_config import ModelConfig
from sarathi.models.quantized import IntegerForm, QuantizedRows
from sarathi.models.tensor_layout import expected_shapes
from sarathi.models.weights import ALL, Array

F32 = npt.NDArray[np.float32]

# A prime, so that the rows of a matrix do not begin at the same few indices of the block.
BLOCK_SIZE = 1048583
_BIAS_STD = 0.02


@dataclass(frozen=True)
class RandomTensor:
    """A random tensor, or a part of one, as the numbers that it is computed from.

    Element (i, j) of a whole matrix of `width` columns is
    `mean + std * block[(offset + i * width + j) % BLOCK_SIZE]`, computed in float32; a vector is
    one row.
    """

    block: F32 = field(repr=False, compare=False)  # see `random_block`
    offset: int
    mean: float
    std: float
    width: int  # columns of the whole tensor
    axes: tuple[range, ...]  # the rows and columns of the whole tensor, or elements of a vector

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(len, self.axes))

    def part(self, *axes: slice) -> RandomTensor:
        """Return consecutive rows and, of a matrix, columns of this tensor."""
        return replace(self, axes=tuple(own[s] for own, s in zip(self.axes, axes, strict=True)))

    def row_starts(self) -> npt.NDArray[np.int64]:
        """Return the index in the block at which each row begins."""
        *rows, columns = self.axes
        first, stop = (rows[0].start, rows[0].stop) if rows else (0, 1)
        return (np.arange(first, stop) * self.width + columns.start + self.offset) % BLOCK_SIZE

    def values(self) -> F32:
        """Compute the elements, as a new array."""
        if 0 in self.shape:
            return np.zeros(self.shape, np.float32)
        if not self.std:
            return np.full(self.shape, self.mean, np.float32)
        rows = np.lib.stride_tricks.sliding_window_view(self.block, self.shape[-1])
        found: F32 = rows[self.row_starts()].reshape(self.shape)
        found *= np.float32(self.std)
        found += np.float32(self.mean)
        return found


def random_tensor(weights: object, name: str) -> RandomTensor | None:
    """Return how a tensor is computed, so that a device can do it; None if it is read from a file.

    Weights that may be random have a method `random` for that. `ModelError` if the tensor is
    missing.
    """
    random: Callable[[str], RandomTensor | None] | None = getattr(weights, "random", None)
    return None if random is None else random(name)


def random_block(width: int, seed: int = 0) -> F32:
    """Return normally distributed numbers, [BLOCK_SIZE + width].

    The last ones repeat the first, so that a row of up to `width` elements may begin anywhere and
    is contiguous.
    """
    block = np.random.default_rng(seed).standard_normal(BLOCK_SIZE, np.float32)
    return np.resize(block, BLOCK_SIZE + width)


class DummyWeights:
    """The tensors that a configuration needs; see `Weights`. Always the same for a `seed`.

    Matrices have the standard deviation 1 / sqrt(columns), so that a normalised input gives an
    output of about unit variance and activations stay far within float16 over any depth. Norms
    scale by 1, biases are small. Every access computes the tensor again, in float32.
    """

    mappings: tuple[mmap.mmap, ...] = ()

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        self._shapes = expected_shapes(config, whole_model(config))
        self._seed = seed
        self._block = random_block(max(shape[-1] for shape in self._shapes.values()), seed)

    def random(self, name: str) -> RandomTensor:
        """See `random_tensor`."""
        shape = self.shape(name)
        digest = hashlib.blake2b(f"{self._seed}/{name}".encode(), digest_size=8).digest()
        if len(shape) > 1:
            mean, std = 0.0, shape[-1] ** -0.5
        else:
            mean, std = (0.0, _BIAS_STD) if name.endswith(".bias") else (1.0, 0.0)
        return RandomTensor(
            block=self._block,
            offset=int.from_bytes(digest, "little") % BLOCK_SIZE,
            mean=mean,
            std=std,
            width=shape[-1],
            axes=tuple(map(range, shape)),
        )

    def __getitem__(self, name: str) -> Array:
        return self.random(name).values()

    def part(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Array:
        source = self.random(name)
        return source.part(*(rows, columns)[: len(source.axes)]).values()

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._shapes:
            raise ModelError(f"the model's configuration asks for no tensor {name}")
        return self._shapes[name]

    def stored_dtype(self, name: str) -> np.dtype[np.generic] | None:
        return None

    def stored_type(self, name: str) -> str:
        return "F32"

    def form(self, name: str) -> IntegerForm | None:
        return None

    def quantized(self, name: str, rows: slice = ALL) -> QuantizedRows:
        raise ModelError(f"{name} is random, and not quantised")
