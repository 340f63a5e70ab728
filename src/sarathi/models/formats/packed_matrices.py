"""Quantised matrices of Hugging Face folders: one function for each way in which they are packed.

Layouts: the sources of AutoAWQ (`awq/modules/linear/gemm.py`), GPTQModel
(`gptqmodel/nn_modules/qlinear/__init__.py`) and compressed-tensors
(`compressed_tensors/compressors`). The first two store matrices transposed, and several values in
a word of 32 bits, the first in its lowest bits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from sarathi.errors import ModelError
from sarathi.models.formats.quantization_config import QuantizationConfig
from sarathi.models.quantized import F32, IntegerForm, QuantizedRows, unpack_nibbles
from sarathi.models.weights import ALL, Array

U8 = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]
Bits = Literal[4, 8]

_SCALES = ("F16", "BF16", "F32", "F8_E8M0")
# The values of all bytes: looking them up is faster than converting them.
_FP8 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
# Where AWQ has each of 8 consecutive rows in a word.
_AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]


class PackedTensors(Protocol):
    """The tensors of a folder as they are stored, see `SafetensorsWeights`."""

    def __contains__(self, name: object) -> bool: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def stored_type(self, name: str) -> str: ...
    def packed(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Array: ...


@dataclass(frozen=True)
class StoredMatrix:
    """A quantised matrix: `read` returns rows `start` to `stop` of it.

    They are in its form, or dequantised if it has none.
    """

    shape: tuple[int, int]
    kind: str  # the name of its type, for the operator
    form: IntegerForm | None
    read: Callable[[int, int], QuantizedRows | F32]


def awq_matrix(tensors: PackedTensors, module: str, config: QuantizationConfig) -> StoredMatrix:
    """Find a matrix of AutoAWQ: words have 8 rows of a column, in an order of their own."""
    values, scales, zeros = (f"{module}.{name}" for name in ("qweight", "scales", "qzeros"))
    columns, words = _matrix_shape(tensors, values, "I32")
    count, _ = _matrix_shape(tensors, scales, *_SCALES)
    shape = (words * 8, columns)
    _expect(tensors, scales, (count, shape[0]), *_SCALES)
    _expect(tensors, zeros, (count, words), "I32")
    form = IntegerForm(4, _group(scales, columns, count, config.groups), "integer")

    def read(start: int, stop: int) -> QuantizedRows:
        here = slice(start // 8, -(-stop // 8))
        integers, of_groups = (
            _unpack_across(_words(tensors, name, ALL, here), 4, start, stop, _AWQ_ORDER)
            for name in (values, zeros)
        )
        found = _scales(tensors, scales, start, stop, across=True)
        return QuantizedRows(form, integers, found, _f32(of_groups))

    return StoredMatrix(shape, "AWQ int4", form, read)


def gptq_matrix(tensors: PackedTensors, module: str, config: QuantizationConfig) -> StoredMatrix:
    """Find a matrix of GPTQ: words have consecutive columns of a row, those of zero points rows.

    Groups are consecutive columns unless the matrix was quantised in the order of activations;
    then, and if the last group is smaller, there is no form for it.
    """
    values, scales, zeros = (f"{module}.{name}" for name in ("qweight", "scales", "qzeros"))
    bits: Bits = 4 if config.bits == 4 else 8
    words, rows = _matrix_shape(tensors, values, "I32")
    columns = words * 32 // bits
    group = min(columns, *config.groups) if config.groups else columns
    count = -(-columns // group)
    _expect(tensors, scales, (count, rows), *_SCALES)
    _expect(tensors, zeros, (count, -(-rows * bits // 32)), "I32")
    groups = _group_of_columns(tensors, f"{module}.g_idx", columns, group, config)
    form = IntegerForm(bits, group, "none" if config.symmetric else "integer")
    middle, per_word = 2 ** (bits - 1), 32 // bits
    # To whole words: where the zero point is 0, subtracting 1 has borrowed from the next one.
    added = np.uint32(sum(config.zero_offset << shift for shift in range(0, 32, bits)))

    def read(start: int, stop: int) -> QuantizedRows:
        integers = _unpack(_words(tensors, values, ALL, slice(start, stop)).T, bits)
        found = _scales(tensors, scales, start, stop, across=True)
        here = slice(start // per_word, -(-stop // per_word))
        words = _words(tensors, zeros, ALL, here) + added
        of_groups = _unpack_across(words, bits, start, stop)
        if not config.symmetric:
            return QuantizedRows(form, integers, found, _f32(of_groups))
        if (of_groups != middle).any():
            raise ModelError(
                f"tensor {zeros} of type GPTQ int{bits} has zero points other than {middle}, "
                "although quantization_config says sym: set that to false"
            )
        return QuantizedRows(form, _signed(integers, bits), found)

    return _grouped((rows, columns), f"GPTQ int{bits}", form, read, groups)


def packed_matrix(tensors: PackedTensors, module: str, config: QuantizationConfig) -> StoredMatrix:
    """Find a matrix of compressed-tensors' pack-quantized: words have columns of a row.

    Values, and zero points where there are some, are stored with half of the range added.
    """
    values, scales, zeros, shape_name, order = (
        f"{module}.weight_{name}" for name in ("packed", "scale", "zero_point", "shape", "g_idx")
    )
    rows, words = _matrix_shape(tensors, values, "I32")
    _expect(tensors, shape_name, (2,), "I32", "I64")
    stored_rows, columns = (int(size) for size in tensors.packed(shape_name))
    bits: Bits = 4 if columns == words * 8 else 8
    if stored_rows != rows or columns * bits != words * 32:
        raise ModelError(
            f"tensor {values} has shape {(rows, words)}, expected that of {stored_rows} rows and "
            f"{columns} columns ({shape_name}) of 4 or 8 bits"
        )
    count = _groups_of_scales(tensors, scales, rows)
    has_zeros = _has_zeros(tensors, zeros, config)
    if has_zeros:
        _expect(tensors, zeros, (-(-rows * bits // 32), count), "I32")
    group = _group(scales, columns, count, config.groups)
    groups = _group_of_columns(tensors, order, columns, group, config)
    form = IntegerForm(bits, group, "integer" if has_zeros else "none")
    per_word = 32 // bits

    def read(start: int, stop: int) -> QuantizedRows:
        integers = _unpack(_words(tensors, values, slice(start, stop)), bits)
        found = _scales(tensors, scales, start, stop)
        if not has_zeros:
            return QuantizedRows(form, _signed(integers, bits), found)
        here = slice(start // per_word, -(-stop // per_word))
        of_groups = _unpack_across(_words(tensors, zeros, here).T, bits, start, stop)
        return QuantizedRows(form, integers, found, _f32(of_groups))

    return _grouped((rows, columns), f"int{bits}", form, read, groups)


def _has_zeros(tensors: PackedTensors, zeros: str, config: QuantizationConfig) -> bool:
    """Return whether there are zero points; `ModelError` if there should be and are not."""
    if zeros not in tensors and config.needs_zeros:
        raise ModelError(
            f"the checkpoint has no tensor {zeros}, and quantization_config says that weights are "
            "not symmetric"
        )
    return zeros in tensors


def scaled_matrix(tensors: PackedTensors, module: str, config: QuantizationConfig) -> StoredMatrix:
    """Find a matrix of one byte a value, int8 or FP8, with scales next to it."""
    values = f"{module}.weight"
    shape = _matrix_shape(tensors, values, "I8", "F8_E4M3")
    found = (f"{module}.{name}" for name in ("weight_scale_inv", "weight_scale"))
    scales = next(name for name in found if name in tensors)
    kind = tensors.stored_type(values)
    if kind == "I8":
        return _int8_matrix(tensors, module, scales, shape, config)
    block = _fp8_block(tensors, scales, shape, config)

    def read(start: int, stop: int) -> F32:
        first = start // block[0]
        of_blocks = _scales(tensors, scales, first, -(-stop // block[0]))
        by_row = of_blocks[np.arange(start, stop) // block[0] - first]
        elements: F32 = np.take(_FP8, tensors.packed(values, slice(start, stop)).view(np.uint8))
        elements *= np.repeat(by_row, block[1], axis=1)[:, : shape[1]]
        return _finite(elements, values, kind)

    return StoredMatrix(shape, kind, None, read)


def _int8_matrix(
    tensors: PackedTensors,
    module: str,
    scales: str,
    shape: tuple[int, int],
    config: QuantizationConfig,
) -> StoredMatrix:
    values, zeros = f"{module}.weight", f"{module}.weight_zero_point"
    count = _groups_of_scales(tensors, scales, shape[0])
    has_zeros = _has_zeros(tensors, zeros, config)
    if has_zeros:
        _expect(tensors, zeros, tensors.shape(scales), "I8")
    group = _group(scales, shape[1], count, config.groups)
    form = IntegerForm(8, group, "integer" if has_zeros else "none")

    def read(start: int, stop: int) -> QuantizedRows:
        integers = np.ascontiguousarray(tensors.packed(values, slice(start, stop))).view(np.uint8)
        found = _scales(tensors, scales, start, stop)
        if not has_zeros:
            return QuantizedRows(form, integers.view(np.int8), found)
        of_groups = _f32(_by_row(tensors, zeros, start, stop)) + np.float32(128)
        return QuantizedRows(form, integers ^ np.uint8(128), found, of_groups)

    return StoredMatrix(shape, "int8", form, read)


def _fp8_block(
    tensors: PackedTensors,
    scales: str,
    shape: tuple[int, int],
    config: QuantizationConfig,
) -> tuple[int, int]:
    """Return how many rows and columns share a scale: all, blocks, or columns of one row."""
    found = tensors.shape(scales)
    _expect(tensors, scales, found, *_SCALES)
    if np.prod(found) == 1:
        return shape
    if config.block is not None:
        rows, columns = config.block
        if found == (-(-shape[0] // rows), -(-shape[1] // columns)):
            return config.block
    count = _groups_of_scales(tensors, scales, shape[0])
    return 1, _group(scales, shape[1], count, config.groups)


def _group_of_columns(
    tensors: PackedTensors, name: str, columns: int, group: int, config: QuantizationConfig
) -> npt.NDArray[np.integer] | None:
    """Return the group of each column; None if groups are equally many consecutive columns."""
    expected = np.arange(columns) // group
    found: npt.NDArray[np.integer] = expected
    count = expected[-1] + 1
    if name in tensors or (config.act_order and count > 1):
        _expect(tensors, name, (columns,), "I32")
        found = np.array(tensors.packed(name), np.int64)
        if found.min() < 0 or found.max() >= count:
            raise ModelError(
                f"tensor {name} has groups from {found.min()} to {found.max()}, expected numbers "
                f"below {count}"
            )
    return None if columns % group == 0 and np.array_equal(found, expected) else found


def _grouped(
    shape: tuple[int, int],
    kind: str,
    form: IntegerForm,
    read: Callable[[int, int], QuantizedRows],
    groups: npt.NDArray[np.integer] | None,
) -> StoredMatrix:
    """Return a matrix in a form or, with the group of each column, one that has none."""
    if groups is None:
        return StoredMatrix(shape, kind, form, read)

    def dequantised(start: int, stop: int) -> F32:
        stored = read(start, stop)
        elements: F32 = stored.values.astype(np.float32)
        if stored.zeros is not None:
            elements -= stored.zeros[:, groups]
        elements *= stored.scales[:, groups]
        return elements

    return StoredMatrix(shape, f"{kind} with uneven groups", None, dequantised)


def _unpack(words: Words, bits: Bits) -> U8:
    """Unpack words of consecutive values, [..., words * 32 / bits]."""
    packed = np.ascontiguousarray(words).view(np.uint8)
    return packed if bits == 8 else unpack_nibbles(packed, signed=False).view(np.uint8)


def _unpack_across(
    words: Words, bits: Bits, start: int, stop: int, order: Collection[int] | None = None
) -> U8:
    """Unpack rows `start` to `stop` from words that hold values of several rows each.

    `words` is [columns, words], those that have any of these rows. `order` is the place of each
    row in a word.
    """
    columns, count = words.shape
    values = _unpack(words.T, bits).reshape(count, columns, -1)
    if order is not None:
        values = values[..., list(order)]
    rows = np.ascontiguousarray(values.swapaxes(1, 2)).reshape(-1, columns)
    first = start % (32 // bits)
    return rows[first : first + stop - start]


def _signed(values: U8, bits: Bits) -> npt.NDArray[np.int8]:
    """Subtract half of the range."""
    return (values - np.uint8(2 ** (bits - 1))).view(np.int8)


def _words(tensors: PackedTensors, name: str, rows: slice = ALL, columns: slice = ALL) -> Words:
    return tensors.packed(name, rows, columns).view(np.uint32)


def _f32(values: Array) -> F32:
    return values.astype(np.float32)


def _scales(tensors: PackedTensors, name: str, start: int, stop: int, across: bool = False) -> F32:
    """Read the scales of rows, [rows, groups]; with `across` they are stored as columns."""
    if across:
        stored = tensors.packed(name, ALL, slice(start, stop)).T
    else:
        stored = _by_row(tensors, name, start, stop)
    return _finite(np.ascontiguousarray(_f32(stored)), name, tensors.stored_type(name))


def _by_row(tensors: PackedTensors, name: str, start: int, stop: int) -> Array:
    """Read what rows have, [rows, groups], of a matrix, or one number for each row or for all."""
    if np.prod(tensors.shape(name)) == 1:
        return np.broadcast_to(tensors.packed(name).reshape(1, 1), (stop - start, 1))
    stored = tensors.packed(name, slice(start, stop))
    return stored[:, None] if stored.ndim == 1 else stored


def _finite(values: F32, name: str, kind: str) -> F32:
    if not np.isfinite(values).all():
        raise ModelError(
            f"tensor {name} of type {kind} has a value that is not a number, or too large: the "
            "file is damaged"
        )
    return values


def _matrix_shape(tensors: PackedTensors, name: str, *kinds: str) -> tuple[int, int]:
    shape = tensors.shape(name)
    if len(shape) != 2 or 0 in shape:
        raise ModelError(f"tensor {name} has shape {shape}, expected a matrix")
    _expect(tensors, name, shape, *kinds)
    return shape[0], shape[1]


def _groups_of_scales(tensors: PackedTensors, name: str, rows: int) -> int:
    """Return how many scales a row has, where they are stored by row; 1 if all share one."""
    shape = tensors.shape(name)
    _expect(tensors, name, shape, *_SCALES)
    if np.prod(shape) == 1 or shape == (rows,):
        return 1
    if len(shape) != 2 or shape[0] != rows:
        raise ModelError(f"tensor {name} has shape {shape}, expected scales of {rows} rows")
    return shape[1]


def _expect(tensors: PackedTensors, name: str, shape: tuple[int, ...], *kinds: str) -> None:
    """Check a tensor's shape, and that its type is one of `kinds`."""
    found, kind = tensors.shape(name), tensors.stored_type(name)
    if found != shape:
        raise ModelError(f"tensor {name} of type {kind} has shape {found}, expected {shape}")
    if kind not in kinds:
        raise ModelError(f"tensor {name} has type {kind}, expected {' or '.join(kinds)}")


def _group(scales: str, columns: int, count: int, sizes: Collection[int]) -> int:
    """Return the columns of each of the groups that share a scale."""
    if count == 1:
        return columns
    if count and columns % count == 0 and columns // count in sizes:
        return columns // count
    expected = " or ".join(map(str, sorted(sizes))) or "all columns"
    raise ModelError(
        f"tensor {scales} has {count} scales for the {columns} columns of a row, but "
        f"quantization_config has groups of {expected}"
    )
