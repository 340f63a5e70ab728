"""The quantised blocks of GGUF files as integers with scales, exactly.

Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h. A block holds 32 or 256
consecutive values of a row. Types whose values come from a table of vectors (IQ1 to IQ3, TQ) have
no such form: the `gguf` package dequantises them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType as Kind

from sarathi.models.quantized import F32, IntegerForm, Integers, QuantizedRows

Blocks = npt.NDArray[np.void]  # structured, [rows, blocks]
U8 = npt.NDArray[np.uint8]

# The values that the 4 bits of IQ4_NL and IQ4_XS stand for.
_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
_SIX_BITS, _FOUR_BITS = np.uint8(0x3F), np.uint8(0xF)


@dataclass(frozen=True)
class BlockType:
    """The layout of a block, and what it means."""

    layout: np.dtype[np.void]
    form: IntegerForm
    # Values [rows, blocks, values of a block], scales and offsets [rows, blocks, groups]: an
    # element is `scale * value + offset`.
    read: Callable[[Blocks], tuple[Integers, F32, F32 | None]]


def read_blocks(stored: U8, kind: Kind) -> QuantizedRows:
    """Return rows of a tensor of one of the `BLOCK_TYPES`; `stored` is [rows, bytes]."""
    block_type = BLOCK_TYPES[kind]
    rows = len(stored)
    values, scales, offsets = block_type.read(stored.view(block_type.layout))
    values, scales = values.reshape(rows, -1), scales.reshape(rows, -1)
    if offsets is None:
        return QuantizedRows(block_type.form, values, scales)
    offsets = offsets.reshape(rows, -1)
    constant = scales == 0  # groups of equal values, which a zero point cannot express
    if constant.any():
        values = values.copy()
        values.reshape(*scales.shape, -1)[constant] = 1
        scales = np.where(constant, offsets, scales)
    zeros = np.divide(-offsets, scales, out=np.zeros_like(scales), where=~constant)
    return QuantizedRows(block_type.form, values, scales, zeros)


def _planes(packed: U8, bits: int, span: int) -> U8:
    """Unpack values of a few bits, [..., bytes * 8 / bits].

    In every run of `span` bytes the lowest bits are the first `span` values, the next bits the
    next ones.
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    runs = packed.reshape(*packed.shape[:-1], -1, 1, span)
    values: U8 = (runs >> shifts) & np.uint8(2**bits - 1)
    return values.reshape(*packed.shape[:-1], -1)


def _f32(values: npt.NDArray[Any]) -> F32:
    """Return values of blocks, with an axis for groups if there is none."""
    wide: F32 = values.astype(np.float32)
    return wide if wide.ndim > 2 else wide[..., None]


def _q4_0(blocks: Blocks) -> tuple[Integers, F32, None]:
    return _planes(blocks["q"], 4, 16).view(np.int8) - np.int8(8), _f32(blocks["d"]), None


def _q4_1(blocks: Blocks) -> tuple[Integers, F32, F32]:
    return _planes(blocks["q"], 4, 16), _f32(blocks["d"]), _f32(blocks["m"])


def _fives(blocks: Blocks) -> U8:
    high: U8 = np.unpackbits(np.ascontiguousarray(blocks["h"]), axis=-1, bitorder="little")
    return _planes(blocks["q"], 4, 16) | high << np.uint8(4)


def _q5_0(blocks: Blocks) -> tuple[Integers, F32, None]:
    return _fives(blocks).view(np.int8) - np.int8(16), _f32(blocks["d"]), None


def _q5_1(blocks: Blocks) -> tuple[Integers, F32, F32]:
    return _fives(blocks), _f32(blocks["d"]), _f32(blocks["m"])


def _q8_0(blocks: Blocks) -> tuple[Integers, F32, None]:
    return np.ascontiguousarray(blocks["q"]), _f32(blocks["d"]), None


def _q2_k(blocks: Blocks) -> tuple[Integers, F32, F32]:
    scales, mins = blocks["s"] & _FOUR_BITS, blocks["s"] >> np.uint8(4)
    return _planes(blocks["q"], 2, 32), *_scaled(blocks, scales, mins)


def _q3_k(blocks: Blocks) -> tuple[Integers, F32, None]:
    # Six bits each: the low four of scale i are in byte i % 8, the high two in byte 8 + i % 4.
    low = _planes(blocks["s"][..., :8], 4, 8)
    high = _planes(blocks["s"][..., 8:], 2, 4)
    scales = (low | high << np.uint8(4)).view(np.int8) - np.int8(32)
    bit = _planes(blocks["h"], 1, 32)
    values = (_planes(blocks["q"], 2, 32) | bit << np.uint8(2)).view(np.int8) - np.int8(4)
    return values, _f32(blocks["d"]) * scales, None


def _six_bit_scales(blocks: Blocks) -> tuple[F32, F32]:
    """Return scales and offsets of Q4_K and Q5_K: 8 of each, of 6 bits, in 12 bytes."""
    first, second, third = np.split(blocks["s"], 3, axis=-1)
    two = np.uint8(2)
    scales = (first & _SIX_BITS, third & _FOUR_BITS | first >> two & np.uint8(0x30))
    mins = (second & _SIX_BITS, third >> np.uint8(4) | second >> two & np.uint8(0x30))
    return _scaled(blocks, np.concatenate(scales, -1), np.concatenate(mins, -1))


def _scaled(blocks: Blocks, scales: U8, mins: U8) -> tuple[F32, F32]:
    return _f32(blocks["d"]) * scales, -_f32(blocks["m"]) * mins


def _q4_k(blocks: Blocks) -> tuple[Integers, F32, F32]:
    return _planes(blocks["q"], 4, 32), *_six_bit_scales(blocks)


def _q5_k(blocks: Blocks) -> tuple[Integers, F32, F32]:
    values = _planes(blocks["q"], 4, 32) | _planes(blocks["h"], 1, 32) << np.uint8(4)
    return values, *_six_bit_scales(blocks)


def _q6_k(blocks: Blocks) -> tuple[Integers, F32, None]:
    values = _planes(blocks["q"], 4, 64) | _planes(blocks["h"], 2, 32) << np.uint8(4)
    return values.view(np.int8) - np.int8(32), _f32(blocks["d"]) * blocks["s"], None


def _iq4_nl(blocks: Blocks) -> tuple[Integers, F32, None]:
    return _IQ4[_planes(blocks["q"], 4, 16)], _f32(blocks["d"]), None


def _iq4_xs(blocks: Blocks) -> tuple[Integers, F32, None]:
    # Six bits each: the low four of scale 2 i and 2 i + 1 are in byte i, the high two in a word.
    low = _planes(blocks["s"], 4, 1)
    high = _planes(blocks["h"], 2, 1)
    scales = (low | high << np.uint8(4)).view(np.int8) - np.int8(32)
    return _IQ4[_planes(blocks["q"], 4, 16)], _f32(blocks["d"]) * scales, None


def _layout(**fields: str) -> np.dtype[np.void]:
    return np.dtype(list(fields.items()))


# d: scale of the block; m: its minimum, or the minima's scale; s: scales of groups; q: the low bits
# of values; h: their high bits (in IQ4_XS, those of the scales).
BLOCK_TYPES: Mapping[Kind, BlockType] = {
    Kind.Q4_0: BlockType(_layout(d="<f2", q="16u1"), IntegerForm(4, 32), _q4_0),
    Kind.Q4_1: BlockType(_layout(d="<f2", m="<f2", q="16u1"), IntegerForm(4, 32, "float"), _q4_1),
    Kind.Q5_0: BlockType(_layout(d="<f2", h="4u1", q="16u1"), IntegerForm(8, 32), _q5_0),
    Kind.Q5_1: BlockType(
        _layout(d="<f2", m="<f2", h="4u1", q="16u1"), IntegerForm(8, 32, "float"), _q5_1
    ),
    Kind.Q8_0: BlockType(_layout(d="<f2", q="32i1"), IntegerForm(8, 32), _q8_0),
    Kind.Q2_K: BlockType(
        _layout(s="16u1", q="64u1", d="<f2", m="<f2"), IntegerForm(4, 16, "float"), _q2_k
    ),
    Kind.Q3_K: BlockType(_layout(h="32u1", q="64u1", s="12u1", d="<f2"), IntegerForm(4, 16), _q3_k),
    Kind.Q4_K: BlockType(
        _layout(d="<f2", m="<f2", s="12u1", q="128u1"), IntegerForm(4, 32, "float"), _q4_k
    ),
    Kind.Q5_K: BlockType(
        _layout(d="<f2", m="<f2", s="12u1", h="32u1", q="128u1"),
        IntegerForm(8, 32, "float"),
        _q5_k,
    ),
    Kind.Q6_K: BlockType(
        _layout(q="128u1", h="64u1", s="16i1", d="<f2"), IntegerForm(8, 16), _q6_k
    ),
    Kind.IQ4_NL: BlockType(_layout(d="<f2", q="16u1"), IntegerForm(8, 32), _iq4_nl),
    Kind.IQ4_XS: BlockType(
        _layout(d="<f2", h="2u1", s="4u1", q="128u1"), IntegerForm(8, 32), _iq4_xs
    ),
}
