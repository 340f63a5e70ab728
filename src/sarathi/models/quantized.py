"""Matrices of integers with scales: the forms of quantised weights, whatever their file format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
# int8 without a zero point, otherwise uint8; also where the values fit into 4 bits.
Integers = npt.NDArray[np.int8 | np.uint8]
Allocate = Callable[[tuple[int, ...], npt.DTypeLike], npt.NDArray[Any]]


@dataclass(frozen=True)
class IntegerForm:
    """How the elements of a matrix are integers: `scale * (value - zero)`.

    Each row has a scale, and perhaps a zero point, for every `group` consecutive columns. Without
    a zero point the integers are signed, otherwise unsigned.
    """

    bits: Literal[4, 8]
    group: int  # columns; divides the matrix' width
    zero: Literal["none", "integer", "float"] = "none"

    def __str__(self) -> str:
        zero = {"none": "", "integer": "z", "float": "m"}[self.zero]
        return f"int{self.bits}g{self.group}{zero}"

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a matrix, scales and zero points included."""
        elements = int(np.prod(shape))
        zero_bits = {"none": 0, "integer": 8, "float": 32}[self.zero]
        return (elements * self.bits + elements // self.group * (32 + zero_bits)) // 8


@dataclass(frozen=True)
class QuantizedRows:
    """Rows of a matrix in an integer form, one byte a value."""

    form: IntegerForm
    values: Integers  # [rows, columns]
    scales: F32  # [rows, columns / group]
    zeros: F32 | None = None  # likewise; whole numbers if the form says so

    def dequantized(self) -> F32:
        """Compute the elements, [rows, columns]."""
        rows, columns = self.values.shape
        grouped: F32 = self.values.reshape(rows, -1, self.form.group).astype(np.float32)
        if self.zeros is not None:
            grouped -= self.zeros[..., None]
        grouped *= self.scales[..., None]
        return grouped.reshape(rows, columns)

    def take(self, rows: slice | npt.NDArray[np.integer]) -> QuantizedRows:
        """Return some of the rows, in the order given."""
        zeros = None if self.zeros is None else self.zeros[rows]
        return QuantizedRows(self.form, self.values[rows], self.scales[rows], zeros)


def concatenate(parts: Sequence[QuantizedRows]) -> QuantizedRows:
    """Return the rows of several parts of one form, one after the other."""
    if len(parts) == 1:
        return parts[0]
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return QuantizedRows(
        parts[0].form,
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate(zeros) if zeros else None,
    )


def quantize(rows: F32, form: IntegerForm) -> QuantizedRows:
    """Round rows of a matrix to a form, each group by its own extremes.

    Without a zero point, the scale is the largest magnitude over 127 (7 in 4 bits), so that the
    range is symmetric. With an integer zero point, the range from the smallest to the largest
    element, extended to contain 0, has `2 ** bits` levels, of which 0 is one: zeros stay zeros.
    """
    assert form.zero != "float"
    count, columns = rows.shape
    grouped = rows.reshape(count, columns // form.group, form.group)
    high = grouped.max(axis=-1)
    low = grouped.min(axis=-1)
    if form.zero == "none":
        limit = 2 ** (form.bits - 1) - 1
        scales = np.maximum(high, -low) / np.float32(limit)
    else:
        levels = 2**form.bits - 1
        low = np.minimum(low, 0)
        scales = (np.maximum(high, 0) - low) / np.float32(levels)
    # The inverse of a smaller one would be infinite.
    scales[scales < np.finfo(np.float32).tiny] = 0
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    scaled = grouped * inverse[..., None]
    values: Integers
    zeros: F32 | None = None
    if form.zero == "none":
        values = np.rint(scaled).astype(np.int8)
    else:
        zeros = np.rint(-low * inverse)
        scaled += zeros[..., None]
        values = np.clip(np.rint(scaled), 0, levels).astype(np.uint8)
    return QuantizedRows(form, values.reshape(count, columns), scales, zeros)


def pack_nibbles(values: Integers) -> npt.NDArray[np.uint8]:
    """Pack 4-bit values two to a byte, the first in the low half, [rows, columns / 2]."""
    raw = values.view(np.uint8)
    packed: npt.NDArray[np.uint8] = raw[:, 1::2] << np.uint8(4)
    packed |= raw[:, ::2] & np.uint8(0xF)
    return packed


def unpack_nibbles(packed: npt.NDArray[np.uint8], *, signed: bool) -> Integers:
    """Undo `pack_nibbles`, [rows, columns]."""
    values = np.empty((*packed.shape, 2), np.uint8)
    np.bitwise_and(packed, 0xF, out=values[..., 0])
    np.right_shift(packed, 4, out=values[..., 1])
    flat = values.reshape(len(packed), -1)
    if not signed:
        return flat
    return ((flat ^ np.uint8(8)) - np.uint8(8)).view(np.int8)


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix in an integer form as it is served; rows are dequantised when they are indexed."""

    form: IntegerForm
    shape: tuple[int, int]
    values: npt.NDArray[np.uint8]  # the bytes of the integers, 4-bit ones packed, [rows, bytes]
    scales: F32  # [rows, columns / group]
    zeros: F32 | npt.NDArray[np.uint8] | None  # likewise; bytes if they are integers

    @staticmethod
    def empty(
        form: IntegerForm, shape: tuple[int, ...], allocate: Allocate = np.empty
    ) -> PackedMatrix:
        """Allocate a matrix whose rows have still to be stored."""
        rows, columns = shape
        groups = (rows, columns // form.group)
        zeros = None
        if form.zero != "none":
            zeros = allocate(groups, np.uint8 if form.zero == "integer" else np.float32)
        return PackedMatrix(
            form,
            (rows, columns),
            allocate((rows, columns * form.bits // 8), np.uint8),
            allocate(groups, np.float32),
            zeros,
        )

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | npt.NDArray[np.integer]) -> F32:
        signed, values = self.form.zero == "none", self.values[rows]
        if self.form.bits == 4:
            integers = unpack_nibbles(values, signed=signed)
        else:
            integers = values.view(np.int8) if signed else values
        zeros = None if self.zeros is None else self.zeros[rows].astype(np.float32)
        return QuantizedRows(self.form, integers, self.scales[rows], zeros).dequantized()

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """The type of the elements, once dequantised."""
        return np.dtype(np.float32)

    @property
    def nbytes(self) -> int:
        return self.form.num_bytes(self.shape)

    def store(self, start: int, rows: QuantizedRows) -> None:
        """Write consecutive rows, of the same form, from row `start` on."""
        here = slice(start, start + len(rows.values))
        self.values[here] = (
            pack_nibbles(rows.values) if self.form.bits == 4 else rows.values.view(np.uint8)
        )
        self.scales[here] = rows.scales
        if self.zeros is not None:
            assert rows.zeros is not None
            self.zeros[here] = rows.zeros
