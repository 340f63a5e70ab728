"""The tensors of a GGUF file, dequantised and reordered when they are read."""

from __future__ import annotations

import math
import mmap
from collections.abc import Set
from functools import cache

import gguf.quants
import ml_dtypes
import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from sarathi.errors import ModelError
from sarathi.models.families import GGUF_ARCHITECTURES
from sarathi.models.formats.checkpoint_files import mapped_array, read_part
from sarathi.models.formats.gguf_blocks import BLOCK_TYPES, read_blocks
from sarathi.models.formats.gguf_file import GgufFile, TensorInfo
from sarathi.models.model_config import ModelConfig
from sarathi.models.quantized import IntegerForm, QuantizedRows
from sarathi.models.weights import ALL, Array

ROPE_FACTORS = "rope_freqs.weight"  # divisors of the frequencies, a part of the configuration

_UNQUANTISED = {
    GGMLQuantizationType.F32: np.dtype(np.float32),
    GGMLQuantizationType.F16: np.dtype(np.float16),
    GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
}


def read_tensor(
    file: GgufFile, name: str, rows: slice = ALL, columns: slice = ALL, interleaved: int = 0
) -> Array:
    """Read a part of a tensor by its name in the file, as float32 if it is quantised.

    With `interleaved`, heads have so many rows, which are reordered from rotation pairs (0, 1),
    (2, 3) ... to pairs (0, d/2), (1, d/2 + 1) ...
    Of a matrix, only the heads and blocks of quantised values that hold the part are read.
    """
    kind = _stored_kind(file, name)
    shape = file.tensors[name].shape or (1,)
    dtype = _UNQUANTISED.get(kind)
    block = 1 if dtype is not None else GGML_QUANT_SIZES[kind][0]
    part = [len(range(size)[wanted]) for size, wanted in zip(shape, (rows, columns), strict=False)]
    if 0 in part:
        return np.empty(part, dtype or np.float32)
    blocks, cut_columns = _units(shape[-1], columns if len(shape) == 2 else ALL, block)
    stored, cut_rows = _read_rows(file, name, kind, rows, blocks, interleaved)
    if dtype is None:
        with np.errstate(invalid="ignore", over="ignore"):
            stored = gguf.quants.dequantize(stored, kind)
        _check_finite(file, name, kind, stored)
    cut = (cut_rows, cut_columns)[: len(shape)] if len(shape) == 2 else (rows,)
    return np.ascontiguousarray(stored[cut])


def read_quantized(
    file: GgufFile, name: str, rows: slice = ALL, interleaved: int = 0
) -> QuantizedRows:
    """Read rows of a matrix that is stored in one of the `BLOCK_TYPES`; else as `read_tensor`."""
    kind = _stored_kind(file, name)
    stored, cut = _read_rows(file, name, kind, rows, ALL, interleaved)
    with np.errstate(invalid="ignore", over="ignore"):
        found = read_blocks(stored.view(np.uint8), kind)
    _check_finite(file, name, kind, found.scales)
    if found.zeros is not None:
        _check_finite(file, name, kind, found.zeros)
    return found.take(cut)


def _read_rows(
    file: GgufFile,
    name: str,
    kind: GGMLQuantizationType,
    rows: slice,
    columns: slice,
    interleaved: int,
) -> tuple[Array, slice]:
    """Read the heads that contain `rows`, and of these rows the blocks with `columns`.

    Returns the bytes, or numbers if it is not quantised, and the slice of `rows` in them. Rows are
    quantised separately, so they can be reordered before they are dequantised.
    """
    info = file.tensors[name]
    dtype = _UNQUANTISED.get(kind)
    block, width = (1, 1) if dtype is not None else GGML_QUANT_SIZES[kind]
    shape = info.shape or (1,)
    stored_shape = (*shape[:-1], shape[-1] // block * width)
    read: tuple[slice, slice] = (ALL, ALL)
    cut = rows
    if len(shape) == 2:
        heads, cut = _units(shape[0], rows, interleaved or 1)
        first, stop, _ = columns.indices(shape[1])
        read = (heads, slice(first // block * width, -(-stop // block) * width))
    stored = read_part(file.mapping, info.offset, stored_shape, dtype or np.dtype(np.uint8), *read)
    if interleaved:
        pairs = stored.reshape(-1, interleaved // 2, 2, *stored.shape[1:])
        stored = pairs.swapaxes(1, 2).reshape(stored.shape)
    return stored, cut


def _check_finite(
    file: GgufFile, name: str, kind: GGMLQuantizationType, values: npt.NDArray[np.floating]
) -> None:
    if not np.isfinite(values).all():
        raise file.error(
            f"tensor {name} of type {kind.name} has a scale that is not a number, or too large: "
            "the file is damaged"
        )


def _units(size: int, wanted: slice, unit: int) -> tuple[slice, slice]:
    """Return the whole units that contain `wanted` of `size` items, and its slice of these."""
    part = range(size)[wanted]
    first = part.start // unit * unit
    return slice(first, -(-part.stop // unit) * unit), slice(part.start - first, part.stop - first)


def _stored_kind(file: GgufFile, name: str) -> GGMLQuantizationType:
    """Return how a tensor is stored, after a check that all of it is in the file."""
    info = file.tensors[name]
    try:
        kind = GGMLQuantizationType(info.kind)
    except ValueError:
        raise file.error(f"tensor {name} has the unknown quantisation type {info.kind}") from None
    if kind not in _UNQUANTISED and not _can_dequantize(kind):
        raise file.error(
            f"tensor {name} has the quantisation type {kind.name}, which cannot be dequantised"
        )
    block, size = GGML_QUANT_SIZES[kind]
    if info.shape and info.shape[-1] % block:
        raise file.error(
            f"tensor {name} has rows of {info.shape[-1]} values, {kind.name} has blocks of {block}"
        )
    end = info.offset + math.prod(info.shape) // block * size
    if end > len(file.mapping):
        raise ModelError(
            f"{file.path} is truncated: tensor {name} ends at byte {end} of {len(file.mapping)}"
        )
    return kind


@cache
def _can_dequantize(kind: GGMLQuantizationType) -> bool:
    """Return whether the gguf package knows how; types of integers and of other programs it lists
    alone."""
    try:
        gguf.quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


class GgufWeights:
    """The tensors of a GGUF file under their names there.

    Raises `ModelError` on construction if the file ends before its last tensor does.
    """

    def __init__(self, file: GgufFile, config: ModelConfig) -> None:
        self._file = file
        family = GGUF_ARCHITECTURES[config.architecture]
        self._interleaved = config.head_dim if family.interleaved_heads else 0
        self._kinds = {name: _stored_kind(file, name) for name in file.tensors}
        self.mappings: tuple[mmap.mmap, ...] = (file.mapping,)

    @property
    def names(self) -> Set[str]:
        """All names but that of the factors that are a part of the configuration."""
        return self._file.tensors.keys() - {ROPE_FACTORS}

    def __contains__(self, name: object) -> bool:
        return name in self._file.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self._info(name).shape

    def stored_dtype(self, name: str) -> np.dtype[np.generic] | None:
        self._info(name)
        return None if self._rows_of_heads(name) else _UNQUANTISED.get(self._kinds[name])

    def __getitem__(self, name: str) -> Array:
        dtype = self.stored_dtype(name)
        if dtype is None:
            return self.part(name)
        info = self._info(name)
        return mapped_array(self._file.mapping, info.offset, info.shape, dtype)

    def part(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Array:
        self._info(name)
        return read_tensor(self._file, name, rows, columns, self._rows_of_heads(name))

    def form(self, name: str) -> IntegerForm | None:
        if len(self._info(name).shape) != 2:
            return None
        found = BLOCK_TYPES.get(self._kinds[name])
        return None if found is None else found.form

    def quantized(self, name: str, rows: slice = ALL) -> QuantizedRows:
        self._info(name)
        return read_quantized(self._file, name, rows, self._rows_of_heads(name))

    def stored_type(self, name: str) -> str:
        """Return the file's name of a tensor's type, such as Q4_K."""
        self._info(name)
        return str(self._kinds[name].name)

    def _rows_of_heads(self, name: str) -> int:
        """Return the rows of each head that is to be reordered; 0 if there is none."""
        return self._interleaved if ".attn_q." in name or ".attn_k." in name else 0

    def _info(self, name: str) -> TensorInfo:
        try:
            return self._file.tensors[name]
        except KeyError:
            raise ModelError(f"{self._file.path} has no tensor {name}") from None
