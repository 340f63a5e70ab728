"""Rotary position embeddings (RoPE): inverse frequencies, their scalings, cosines and sines.

Frequencies are computed in float32 in the order of operations of the `transformers` library,
because one unit in the last digit of a frequency is visible in the logits of long prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sarathi.errors import ExecutorError, ModelError
from sarathi.models.formats.harmless_fields import is_harmless_rotary_field
from sarathi.models.json_fields import Fields
from sarathi.models.model_config import MAX_HEAD_DIM
from sarathi.system.machine import available_memory

F32 = npt.NDArray[np.float32]
Frequencies = F32  # inverse frequencies, [head_dim / 2]
_CHUNK = 1 << 16  # positions at a time, with angles in float64: float32 is coarse far out


def default_inv_freq(head_dim: int, theta: float) -> Frequencies:
    """Compute `theta ** (-2 i / head_dim)`, i in 0 .. head_dim / 2 (Su et al., RoFormer, 2021)."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers: Frequencies = np.float32(theta) ** exponents
    return np.float32(1) / powers


def linear_scaled(inv_freq: Frequencies, factor: float) -> Frequencies:
    """Apply position interpolation: divide positions by `factor` (Chen et al., 2023)."""
    return inv_freq / np.float32(factor)


def llama3_scaled(
    inv_freq: Frequencies,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position: float,
) -> Frequencies:
    """Apply Llama 3.1's scaling.

    Wavelengths that the original context covers well stay as they are, very long ones are
    interpolated by `factor`, and those in between blend the two.
    """
    wavelength = np.float32(2 * np.pi) / inv_freq
    scaled = inv_freq / np.float32(factor)
    smooth = (np.float32(original_max_position) / wavelength - np.float32(low_freq_factor)) / (
        np.float32(high_freq_factor - low_freq_factor)
    )
    blended = (1 - smooth) * inv_freq / np.float32(factor) + smooth * inv_freq
    is_long = wavelength > original_max_position / low_freq_factor
    is_short = wavelength < original_max_position / high_freq_factor
    selected: Frequencies = np.where(is_long, scaled, np.where(is_short, inv_freq, blended))
    return selected


def read_inv_freq(fields: Fields, head_dim: int, max_position: int) -> Frequencies:
    """Read the inverse frequencies of a config.json of any family, with its scaling.

    Where a value is given twice, the one that `transformers` uses counts: a `rope_scaling` that
    is not empty replaces `rope_parameters` entirely; a base or a rotated part in the object
    counts before one outside it; but the length before scaling is the one outside it.
    """
    theta = fields.number("rope_theta", 10000.0)
    return inv_freq_of(_parameters(fields), fields, head_dim, max_position, theta)


def inv_freq_of(
    rope: Fields, fields: Fields, head_dim: int, max_position: int, theta: float
) -> Frequencies:
    """Read the inverse frequencies that the object `rope` in a config.json describes.

    Args:
        fields: those of the whole file.
        theta: the base where the object has none.
    """
    partial = rope if "partial_rotary_factor" in rope else fields
    if partial.number("partial_rotary_factor", 1.0) != 1.0:
        raise partial.wrong("partial_rotary_factor", "1 (the whole head is rotated)")
    theta = rope.number("rope_theta", theta)
    length = "original_max_position_embeddings"
    original = fields.number(length, rope.number(length, max_position))
    if head_dim % 2 or head_dim > MAX_HEAD_DIM:
        raise ModelError(
            f"heads have {head_dim} dimensions, expected an even number up to {MAX_HEAD_DIM}"
        )
    plain = default_inv_freq(head_dim, theta)
    old_type = rope.text("type", "default")
    type_field = "rope_type" if "rope_type" in rope else "type"
    match rope.text("rope_type", old_type):
        case "default":
            inv_freq = plain
        case "linear":
            inv_freq = linear_scaled(plain, rope.number("factor"))
        case "llama3":
            low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
            if low >= high:
                raise rope.wrong("low_freq_factor", f"less than high_freq_factor ({high:g})")
            inv_freq = llama3_scaled(
                plain,
                factor=rope.number("factor"),
                low_freq_factor=low,
                high_freq_factor=high,
                original_max_position=original,
            )
        case _:
            raise rope.wrong(type_field, "one of default, linear, llama3")
    rope.refuse_unread(is_harmless_rotary_field)
    return inv_freq


def _parameters(fields: Fields) -> Fields:
    """Return the object that describes the rotary embedding; an empty one if there is none."""
    scaling, parameters = fields.object("rope_scaling"), fields.object("rope_parameters")
    name, rope = (
        ("rope_scaling", scaling)
        if scaling is not None and scaling.data
        else ("rope_parameters", parameters or Fields({}, fields.origin))
    )
    if any(isinstance(value, dict) for value in rope.data.values()):
        raise fields.wrong(
            name, "one description for all layers: one for each kind of layer is not supported"
        )
    return rope


def rope_tables(inv_freq: Sequence[float], max_position: int) -> tuple[F32, F32]:
    """Compute cosines and sines of the angles of all positions, [max_position, head_dim / 2] each.

    `ExecutorError` if they do not fit into memory.
    """
    num_bytes = 2 * max_position * len(inv_freq) * np.dtype(np.float32).itemsize
    if num_bytes > available_memory():
        raise ExecutorError(
            f"rotary embeddings of {max_position} positions take {num_bytes / 1e9:.1f} GB, more "
            "than is free: lower --max-model-len"
        )
    frequencies = np.asarray(inv_freq, np.float64)
    cos, sin = (np.empty((max_position, len(inv_freq)), np.float32) for _ in range(2))
    for first in range(0, max_position, _CHUNK):
        rows = slice(first, min(first + _CHUNK, max_position))
        angles = np.outer(np.arange(rows.start, rows.stop), frequencies)
        cos[rows], sin[rows] = np.cos(angles), np.sin(angles)
    return cos, sin
